"""The small setting with which the contract suite runs each built-in method; a new method adds its line here.

Every line finishes in seconds, without a download, and is in the middle of its work for most of its messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel

from farshore.core.session import NodeSession, Workload
from farshore.core.workloads import load
from farshore.engines.split.workload import SplitSegmentWorkload

SEED = 7
APP = Path(__file__).parents[1] / "engines" / "flower" / "apps" / "message"

#: What the suite promises of every method, unless the method's line says why not.
Promise: TypeAlias = Literal["resumed", "estimate", "lost node", "data", "defaults"]


@dataclass(frozen=True)
class SmallRun:
    """How to run a method small.

    Attributes
    ----------
    settings : Mapping
        Of the method's configuration.
    nodes : int
        Number of nodes.
    longer : Mapping
        Changes of the settings with which a run takes some seconds, for faults over processes.
    missing : (str, str)
        A setting that needs a data set which nobody has, and the name of that data set.
    measured : frozenset of str
        Entries of the result that are times or rates; no two runs agree on them.
    arguments : tuple of str
        Arguments that ``farshore run METHOD`` needs besides settings.
    wrong : tuple of (str, str)
        ``key=value`` that must be refused, and what the message must say; by default derived from the configuration.
    foreign : tuple of str
        Sections of the configuration that have the names of another library's options.
    without : Mapping
        Promises that do not apply to the method, each with the reason.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    nodes: int = 2
    longer: Mapping[str, Any] = field(default_factory=dict)
    missing: tuple[str, str] = ("", "")
    measured: frozenset[str] = frozenset()
    arguments: tuple[str, ...] = ()
    wrong: tuple[tuple[str, str], ...] = ()
    foreign: tuple[str, ...] = ()
    without: Mapping[Promise, str] = field(default_factory=dict)

    def workload(self, name: str) -> Workload:
        """Return the workload to run in process."""
        return load(name)

    def config(self, workload: Workload) -> BaseModel:
        """Return the configuration of the run."""
        return workload.config.model_validate(dict(self.settings))

    def prolonged(self) -> SmallRun:
        """Return the run with its ``longer`` settings."""
        return replace(self, settings={**self.settings, **self.longer})

    @property
    def node_names(self) -> tuple[str, ...]:
        """Names of the nodes; the same in process and over processes."""
        return tuple(f"node-{i}" for i in range(1, self.nodes + 1))


class FlowerApp(SmallRun):
    """The app of the Flower engine's own tests."""

    def config(self, workload: Workload) -> BaseModel:
        """Pack the app."""
        from farshore.simulations.flower_app import flower_run

        return flower_run(APP, dict(self.settings))


class UserProcess(SmallRun):
    """A user's training loop on a model whose middle blocks are on the server."""

    node_names = ("user",)
    CUT = ("bert.encoder.layer.0", "bert.encoder.layer.2")
    STEPS = 4

    def workload(self, name: str) -> Workload:
        """Return the method with the user's script as its node program."""
        return _Attached(self)

    def config(self, workload: Workload) -> BaseModel:
        """Describe the blocks of :meth:`model`."""
        from farshore.engines.split.attach import BlockRange, recipe_of
        from farshore.engines.split.config import SplitSegment

        model = self.model()
        return SplitSegment(recipe=recipe_of(model, BlockRange.find(model, self.CUT)), ragged=False)

    @staticmethod
    def model() -> Any:
        """Return a BERT of 4 blocks, d=32, with dropout in the server's blocks."""
        import torch
        from transformers import BertConfig, BertForSequenceClassification

        sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
        torch.manual_seed(5)
        return BertForSequenceClassification(BertConfig(vocab_size=99, num_labels=3, **sizes)).train()

    def train(self, model: Any, folder: Path) -> None:
        """Train the split model and save its state dict in ``folder``."""
        import torch
        from safetensors.torch import save_file

        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        torch.manual_seed(11)
        for step in range(self.STEPS):
            ids = torch.randint(3, 99, (4, 9), generator=torch.Generator().manual_seed(step))
            loss = model(input_ids=ids, labels=ids[:, 0] % 3).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "user.safetensors")


class _Attached(SplitSegmentWorkload):
    """The workload ``split_segment`` with a user's script in place of the missing node program."""

    def __init__(self, user: UserProcess) -> None:
        self._user = user

    def node_program(self, session: NodeSession, config: BaseModel) -> None:
        from farshore.engines.split.attach import BlockRange, attach

        model: Any = self._user.model()
        settings: Any = config
        with attach(model, BlockRange.find(model, self._user.CUT), settings, session, "pca"):
            self._user.train(model, session.run.directory / "states")


_MLP = {"model": "mlp", "steps": 10, "batch": 16, "train_samples": 320, "log_every": 1, "checkpoint_every": 3}
_MLP |= {"eval_every": 4, "transport": "star"}
_LONG = {"steps": 400, "checkpoint_every": 10, "log_every": 10, "eval_every": 0, "schedule": "constant"}
_SHAPE = "{hidden_size: 32, num_attention_heads: 4, intermediate_size: 64}"
_RECIPE = f"recipe={{family: bert, first: 1, last: 2, shape: {_SHAPE}}}"
_USER_CODE = "its traffic depends on the user's code"

SMALL_RUNS: dict[str, SmallRun] = {
    "ccgc": SmallRun(
        {"epochs": 14, "dim": 16, "warmup": 5, "kmeans_every": 4, "log_every": 2, "checkpoint_every": 3}
        | {"transport": "star"},
        longer={"epochs": 2000, "warmup": 50, "kmeans_every": 20, "log_every": 20, "checkpoint_every": 20},
        missing=("dataset=cora", "cora"),
    ),
    "data_parallel": SmallRun(_MLP, longer=_LONG, missing=("dataset=cifar10", "cifar10")),
    "dp_kfac": SmallRun(
        {**_MLP, "factor_steps": 2, "inv_steps": 4},
        longer=_LONG,
        missing=("dataset=cifar10", "cifar10"),
    ),
    "flower": FlowerApp(
        # One node suffices, so that the app goes on after a loss. More than two would be added up in random order.
        {"nodes": 1, "num-server-rounds": 3},
        longer={"num-server-rounds": 60, "train.local-steps": 100},
        arguments=("--app", str(APP)),
        wrong=(("lrr=0.1", "lr"), ("train.local-steps=many", "train.local-steps"), ("up_encoding=int99", "int99")),
        measured=frozenset({"metrics"}),  # the app counts its visits, also those before a restart
        without={
            "resumed": "a ServerApp has no checkpoints, so the app starts again",
            "estimate": _USER_CODE,
            "data": "apps find their own data",
            "defaults": "there is no app to run by default",
        },
    ),
    "ping": SmallRun(
        {"rounds": 10, "kilobytes": 16, "checkpoint_every": 3},
        longer={"rounds": 100, "pause_ms": 20},
        measured=frozenset({"nodes"}),
        without={"data": "it sends random blocks"},
    ),
    "split_fine_tuning": SmallRun(
        {"task": "sst2", "model": "tiny", "rank": 8, "batch_size": 8, "steps": 6, "epochs": 2, "checkpoint_every": 2}
        | {"average_every": 3, "eval_every": 4},
        longer={"steps": 60, "epochs": 24, "checkpoint_every": 5},
        missing=("task=mnli", "glue"),
    ),
    "split_segment": UserProcess(
        nodes=1,
        arguments=("--set", _RECIPE),
        wrong=(("encodin=raw", "encoding"), ("rank=many", "rank"), ("encoding=int5", "encoding")),
        foreign=("recipe.", "optimizer."),
        without={
            "resumed": "the user's half of the model is in that process's memory only",
            "lost node": "the user's half of the model is in that process's memory only",
            "estimate": _USER_CODE,
            "data": "the user's process has the data",
            "defaults": "there is no model to split by default",
        },
    ),
    "sweep": SmallRun(
        # One node, so that it is given the same items each time.
        {"method": "ping", "settings": {"kilobytes": 4}, "grid": {"rounds": [2, 3]}, "seeds": [0, 1, 2]},
        nodes=1,
        longer={"settings": {"kilobytes": 4, "pause_ms": 20}, "seeds": list(range(20)), "grid": {"rounds": [20, 30]}},
        arguments=("--set", "method=ping"),
        measured=frozenset({"measured"}),
        without={
            "data": "the data sets are those of its method",
            "defaults": "there is no method to sweep by default",
        },
    ),
    "vhl": SmallRun(
        {"rounds": 4, "per_round": 2, "local_epochs": 1, "batch": 256, "eval_every": 2, "checkpoint_every": 1}
        | {"method": "scaffold", "virtual": {"per_class": 4, "batch": 16, "distribution": "ship"}},
        longer={"rounds": 40, "checkpoint_every": 5},
        missing=("dataset=cifar10", "cifar10"),
    ),
}

#: Settings of which the name says all; so do, for others, the choices that the type lists.
SELF_EXPLAINING = frozenset({"dropout", "epochs", "lr", "learning_rate", "momentum", "powersgd_rank", "weight_decay"})
