"""Fixtures: tiny random models of every supported type, a padded batch, and whole runs on a tiny model."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from farshore.algorithms.split_fine_tuning.cloud_program import CloudProgram
from farshore.algorithms.split_fine_tuning.config import SplitFineTuning
from farshore.algorithms.split_fine_tuning.edge_program import EdgeProgram
from farshore.algorithms.split_fine_tuning.heads import Classifier
from farshore.algorithms.split_fine_tuning.workload import SplitFineTuningWorkload
from farshore.core.errors import DataError
from farshore.core.message import Message
from farshore.core.transfer import Transfer
from farshore.simulations.in_process import InProcessRun

VOCABULARY, PAD = 99, 1
Batch = dict[str, torch.Tensor]


def _backbone(family: str, dropout: float, attention: str) -> Any:
    import transformers as t

    common = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "bos_token_id": 0, "eos_token_id": 2}
    bert = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
    bert |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    distil = {"dim": 32, "n_layers": 4, "n_heads": 4, "hidden_dim": 64}
    distil |= {"dropout": dropout, "attention_dropout": dropout}
    gpt = {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_inner": 64}
    gpt |= {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
    model, config = {
        "bert": (t.BertModel, t.BertConfig(**bert, **common)),
        "roberta": (t.RobertaModel, t.RobertaConfig(**bert, **common)),
        "distilbert": (t.DistilBertModel, t.DistilBertConfig(**distil, **common)),
        "gpt2": (t.GPT2Model, t.GPT2Config(**gpt, **common)),
    }[family]
    config._attn_implementation = attention
    return model(config)


@pytest.fixture
def tiny() -> Callable[..., Classifier]:
    """``tiny(family, dropout=0.0, attention="sdpa", head="auto", scale=10.0)``: a 4-block classifier, d=32, f=64.

    Weights are ``scale`` times larger than the library's initial values, so that every part affects the output.
    """

    def build(
        family: str = "bert",
        dropout: float = 0.0,
        attention: str = "sdpa",
        head: Any = "auto",
        scale: float = 10.0,
    ) -> Classifier:
        torch.manual_seed(5)
        backbone = _backbone(family, dropout, attention)
        with torch.no_grad():
            for name, p in backbone.named_parameters():
                if p.dim() > 1:
                    p.mul_(scale)
                elif name.endswith("bias"):
                    p.normal_(0, 0.1)
                else:
                    p.normal_(1, 0.1)
        return Classifier(backbone, 3, head=head, dropout=dropout, seed=1)

    return build


@pytest.fixture
def batch() -> Batch:
    """Six sentences of 3 to 9 tokens, padded on the right, with labels of three classes."""
    generator = torch.Generator().manual_seed(2)
    lengths = torch.tensor([9, 6, 3, 8, 5, 7])
    ids = torch.randint(3, VOCABULARY, (6, 9), generator=generator)
    mask = (torch.arange(9) < lengths[:, None]).long()
    ids[mask == 0] = PAD
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 1, 2, 1, 0, 2])}


# ---- whole runs of split fine-tuning on a tiny model ----------------------------------------------------------------

WORDS = ["good", "bad", "fine", "poor", "film", "story", "actor", "scene", "plot", "music"]
WORDS += ["was", "is", "not", "very", "never", "a", "the", "and", "but", "dull", "great"]
#: ``hook(owner, message)`` receives every message of a side (a node's name or "server"); its result is passed on.
Hook = Callable[[str, Message], Message]


def _save_tiny_bert(folder: Path) -> None:
    """Save a random BERT of 3 blocks with a tokenizer for :data:`WORDS`, in Hugging Face format."""
    import transformers as t
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.pre_tokenizers import BertPreTokenizer
    from tokenizers.processors import TemplateProcessing

    vocabulary = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    t.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    torch.manual_seed(11)
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    config = t.BertConfig(vocab_size=len(vocabulary), max_position_embeddings=32, initializer_range=0.2, **sizes)
    t.BertModel(config, add_pooling_layer=False).save_pretrained(folder)


def _save_tiny_sst2(folder: Path, train: int = 24, dev: int = 10) -> None:
    """Save a synthetic SST-2 in GLUE format: sentences of 3 to 11 words, one of which decides the label."""
    rng = np.random.default_rng(3)
    folder.mkdir(parents=True)
    for name, count in (("train", train), ("dev", dev)):
        lines = ["sentence\tlabel"]
        for i in range(count):
            words = [*rng.choice(WORDS[4:], 2 + i % 9), rng.choice(["good", "great"] if i % 2 else ["bad", "poor"])]
            lines.append(f"{' '.join(rng.permutation(words))}\t{i % 2}")
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n")


@dataclass
class Outcome:
    """A finished run: result, loss per step, ledger rows, and the programs."""

    result: dict[str, Any]
    losses: list[float]
    rows: list[Transfer]
    cloud: CloudProgram
    edges: dict[str, EdgeProgram]

    def joined(self) -> dict[str, torch.Tensor]:
        """Return the parameters of an uncompressed run by their names in the unsplit model."""
        (edge,) = self.edges.values()
        block = self.cloud.plan.options.block
        front = {n.replace("model.", "backbone.", 1): p for n, p in edge.front.named_parameters()}
        trunk = {n.replace("model.", "backbone.", 1): p for n, p in self.cloud.trunk.named_parameters()}
        shifted = {re.sub(r"layer\.(\d+)", lambda m: f"layer.{int(m[1]) + block}", n): p for n, p in trunk.items()}
        return front | shifted

    def weights(self) -> dict[str, torch.Tensor]:
        """Return all parameters and buffers of all sides, by name."""
        sides = {"cloud": self.cloud.trunk} | {name: edge.front for name, edge in self.edges.items()}
        return {f"{side}/{n}": t for side, module in sides.items() for n, t in module.state_dict().items()}


@dataclass
class ObservedWorkload(SplitFineTuningWorkload):
    """The workload with its programs accessible to tests, and with wrapped sessions."""

    cloud: CloudProgram | None = None
    edges: dict[str, EdgeProgram] = field(default_factory=dict)
    wrap: Callable[[Any], Any] = field(default=lambda session: session)

    def server_program(self, session: Any, config: Any) -> dict[str, Any]:
        self.cloud = CloudProgram(self.wrap(session), config)
        return self.cloud.run()

    def node_program(self, session: Any, config: Any) -> None:
        edge = EdgeProgram(self.wrap(session), config)
        self.edges[session.node] = edge
        edge.run()


@dataclass
class HookedChannel:
    """A channel with hooks on sending and receiving; a hook may change the message or raise."""

    owner: str
    channel: Any
    on_send: Hook
    on_receive: Hook

    def send(self, message: Message) -> None:
        self.channel.send(self.on_send(self.owner, message))

    def receive(self, timeout: float | None = None) -> Message:
        return self.on_receive(self.owner, self.channel.receive(timeout))

    def expect(self, kinds: Any, *, only: bool = False) -> None:
        self.channel.expect(kinds, only=only)


def _unchanged(owner: str, message: Message) -> Message:
    return message


def _hooked(session: Any, on_send: Hook, on_receive: Hook) -> Any:
    if hasattr(session, "channel"):
        return replace(session, channel=HookedChannel(session.node, session.channel, on_send, on_receive))
    hooked = {node: HookedChannel("server", c, on_send, on_receive) for node, c in session.channels.items()}
    cohort = copy.copy(session.cohort)
    cohort.channels = hooked
    return replace(session, cohort=cohort)


@dataclass
class TinyRunner:
    """Runs split fine-tuning on tiny data and a tiny model; ``observed`` holds the programs of the latest run."""

    data: dict[str, Path]
    folder: Path
    count: int = 0
    observed: ObservedWorkload = field(default_factory=lambda: ObservedWorkload())

    def config(self, **changes: Any) -> SplitFineTuning:
        """Return deterministic, lossless settings (24 sentences, 3 steps per epoch), updated by ``changes``."""
        base = {"task": "sst2", "model": "tiny", "cut": "boundary", "up": "raw", "down": "raw", "dropout": 0.0}
        base |= {"batch_size": 8, "epochs": 2, "learning_rate": 1e-3}
        return SplitFineTuning(**{**base, **changes})

    def find(self, name: str) -> Path:
        """Return the folder of a data set."""
        if name not in self.data:
            raise DataError(f"no data set is named '{name}'")
        return self.data[name]

    def run(
        self,
        config: SplitFineTuning,
        edges: int = 1,
        *,
        directory: Path | None = None,
        on_send: Hook = _unchanged,
        on_receive: Hook = _unchanged,
    ) -> Outcome:
        """Run split fine-tuning in ``directory`` (default: a new one), with hooks on the messages of all sides."""
        self.count += 1
        observed = self.observed = ObservedWorkload(wrap=lambda session: _hooked(session, on_send, on_receive))
        rows: list[Transfer] = []
        run = InProcessRun(
            observed,
            config,
            directory or self.folder / f"run-{self.count}",
            nodes=[f"edge-{i}" for i in range(edges)],
            seed=7,
            data=self.data,
            recorder=rows.append,
        )
        result = run.run()
        assert observed.cloud is not None
        return Outcome(result, observed.cloud.losses, rows, observed.cloud, observed.edges)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """``{"tiny": …, "glue": …}``: folders of the model and of the tasks."""
    root = tmp_path_factory.mktemp("tiny")
    _save_tiny_bert(root / "model")
    _save_tiny_sst2(root / "glue" / "SST-2")
    return {"tiny": root / "model", "glue": root / "glue"}


@pytest.fixture(scope="session")
def new_runner(tiny_data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[], TinyRunner]:
    """Factory of runners on tiny data; see :class:`TinyRunner`."""
    return lambda: TinyRunner(tiny_data, tmp_path_factory.mktemp("runs"))


@pytest.fixture
def runner(new_runner: Callable[[], TinyRunner]) -> TinyRunner:
    """A runner on tiny data; see :class:`TinyRunner`."""
    return new_runner()
