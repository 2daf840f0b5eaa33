"""Takes a trained split model out: joins the nodes' fronts with the server's trunk and writes one plain model."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...core.errors import DataError, NotFoundError, RunFailedError
from ...core.exports import Format, TrainedModel
from ...core.message import Array
from ...data.text import Tokenizer
from ...models.onnx_export import check_close, compare_graph, require, write_graph
from ...models.state_arrays import from_arrays
from ...runs import files
from ...runs.checkpoints import CheckpointStore
from ...runs.model_states import save_state
from .backbone import load_backbone
from .builders import Builder, TaskData, inputs_of
from .config import SplitFineTuning
from .front import Front
from .heads import Head
from .merge import merge
from .model_card import model_card
from .trunk import Trunk

_SENTENCES = [
    "A split model.",
    "Its first layers ran on the edge, and all others in the cloud: one function, two places.",
]
_NO_FRONT = "give the folder of each node with --front DIR: ~/.farshore/nodes/NAME/runs/RUN on the node's machine"


class Whole(nn.Module):
    """Backbone and head as one module: token ids, mask and, for pairs, token types to logits."""

    def __init__(self, backbone: PreTrainedModel, head: Head, *, token_types: bool) -> None:
        super().__init__()
        self.backbone, self.head, self._token_types = backbone, head, token_types

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Return logits [B, C]; all inputs are [B, T] int64."""
        types = {"token_type_ids": token_type_ids} if self._token_types else {}
        out = self.backbone(input_ids=input_ids, attention_mask=attention_mask, **types)
        pooled = getattr(out, "pooler_output", None)
        return cast(Tensor, self.head(out.last_hidden_state, pooled, attention_mask))


@dataclass(frozen=True)
class Joined:
    """The trained halves of a run, and what they are compared on."""

    front: Front
    trunk: Trunk
    tokenizer: Tokenizer
    step: int
    fronts: tuple[str, ...]
    task: TaskData | None

    def split_logits(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Logits of the two halves, with codes that are not rounded."""
        z, sentence = self.front.codes(**inputs)
        return cast(Tensor, self.trunk(z, inputs["attention_mask"], sentence))


def export(trained: TrainedModel, find: Callable[[str], Path], path: Path, kind: Format) -> dict[str, Any]:
    """Write the model of a run; see :class:`~farshore.core.exports.SupportsExport`."""
    if kind == "onnx":
        require("onnx", "onnxscript", "onnxruntime")
    joined = join(trained, find)
    config = cast(SplitFineTuning, trained.config)
    pretrained, _ = load_backbone(Builder(config, trained.seed, find).source)
    backbone, head = merge(joined.front, joined.trunk, pretrained)
    whole = Whole(backbone, head, token_types=joined.front.plan.family == "bert").eval()
    about: dict[str, Any] = {"step": joined.step, "fronts": ", ".join(joined.fronts)}
    about |= _compare(joined, whole)
    about["numbers"] = sum(p.numel() for p in whole.parameters())
    metadata = {"step": str(joined.step), "classes": str(head.linear.out_features), "pooling": head.pooling}
    if kind == "hf":
        _write_folder(path, backbone, head, joined)
    elif kind == "safetensors":
        save_state(path, {name: tensor.numpy() for name, tensor in whole.state_dict().items()}, metadata)
    else:
        about["onnx_difference"] = _write_onnx(path, whole, joined, metadata)
    return about


def join(trained: TrainedModel, find: Callable[[str], Path]) -> Joined:
    """Load both halves at the newest step that the server and all given nodes have; fronts are averaged.

    Raises
    ------
    NotFoundError
        No front is on this machine, or there is no common step.
    StorageError
        A checkpoint is damaged or of another model.
    """
    assert trained.directory is not None
    if not trained.node_folders:
        raise NotFoundError("no node's part of the model is on this machine", hint=_NO_FRONT)
    server = CheckpointStore(trained.directory / "checkpoints")
    nodes = {name: CheckpointStore(_checkpoints(folder)) for name, folder in trained.node_folders.items()}
    steps = {"the server": server.steps(), **{f"node {name}": store.steps() for name, store in nodes.items()}}
    common = set.intersection(*map(set, steps.values()))
    if not common:
        have = "; ".join(f"{who} has {', '.join(map(str, s)) or 'none'}" for who, s in steps.items())
        raise NotFoundError(f"the parts of the model have no step in common: {have}", hint=_NO_FRONT)
    step = max(common)
    builder = Builder(cast(SplitFineTuning, trained.config), trained.seed, find)
    front, tokenizer = builder.front()
    from_arrays(_mean([store.load(step)[0] for store in nodes.values()]), front)
    trunk = builder.trunk()
    from_arrays(server.load(step)[0], trunk)
    try:
        task: TaskData | None = builder.task(tokenizer)
    except DataError:  # the data set is elsewhere: sentences of our own will do
        task = None
    return Joined(front.eval(), trunk.eval(), tokenizer, step, tuple(nodes), task)


def _checkpoints(folder: Path) -> Path:
    inner = folder / "checkpoints"
    return inner if inner.is_dir() else folder


def _mean(states: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Average the weights of several fronts; everything else is that of the first."""
    found = {name: array for name, array in states[0].items() if name.startswith("model.")}
    if len(states) == 1:
        return found
    floats = {name: array.dtype for name, array in found.items() if array.dtype.kind == "f"}
    for name, dtype in floats.items():
        found[name] = np.stack([state[name].astype(np.float64) for state in states]).mean(axis=0).astype(dtype)
    return found


@torch.no_grad()
def _compare(joined: Joined, whole: Whole) -> dict[str, Any]:
    """Compare the merged model with the two halves, and score it on the held-out examples if they are here."""
    if joined.task is None:
        inputs = dict(joined.tokenizer(_SENTENCES, padding=True, return_tensors="pt"))
        if joined.front.plan.family != "bert":
            inputs.pop("token_type_ids", None)
        expected, found = joined.split_logits(inputs), whole(**inputs)
        return {"sentences": len(_SENTENCES), "largest_difference": _difference(found, expected)}
    truth, guesses, largest, count = [], [], 0.0, 0
    for batch in joined.task.shard(0, 1).held_out():
        inputs = inputs_of(batch)
        found = whole(**inputs)
        if count < 256:
            largest = max(largest, _difference(found, joined.split_logits(inputs)))
        count += len(batch)
        truth.append(batch.labels)
        guesses.append(found.argmax(1).numpy())
    score = joined.task.score(np.concatenate(truth), np.concatenate(guesses))
    return {"sentences": count, "largest_difference": largest, joined.task.metric: float(score)}


def _difference(found: Tensor, expected: Tensor) -> float:
    return check_close(found.numpy(), expected.numpy(), "the merged model")


def _write_folder(path: Path, backbone: PreTrainedModel, head: Head, joined: Joined) -> None:
    """Write the folder beside its place first, so that a failure leaves what was there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as temporary:
            folder = Path(temporary) / "model"
            labels = dict(enumerate(joined.task.labels if joined.task else map(str, range(head.linear.out_features))))
            backbone.config.id2label = labels
            backbone.config.label2id = {label: index for index, label in labels.items()}
            backbone.save_pretrained(folder, safe_serialization=True)
            cast(Any, joined.tokenizer).save_pretrained(folder)
            save_state(
                folder / "head.safetensors",
                {"weight": head.linear.weight.detach().numpy(), "bias": head.linear.bias.detach().numpy()},
                {"pooling": head.pooling},
            )
            (folder / "README.md").write_text(model_card(head.pooling, labels), encoding="utf-8")
            _check_folder(folder, backbone)
            if path.exists():
                shutil.rmtree(path)
            shutil.move(folder, path)
    except OSError as error:
        raise files.storage_error(f"cannot write {path}", error) from error


def _check_folder(folder: Path, backbone: PreTrainedModel) -> None:
    """Load the folder as its users will, and compare all weights."""
    loaded, _ = load_backbone(folder, hidden_dropout=0.0)
    for name, tensor in backbone.state_dict().items():
        if not torch.equal(loaded.state_dict()[name], tensor):
            raise RunFailedError(f"the written model differs in {name}", hint="check the disk")


def _write_onnx(path: Path, whole: Whole, joined: Joined, metadata: Mapping[str, str]) -> float:
    inputs = dict(joined.tokenizer(_SENTENCES, padding=True, return_tensors="pt"))
    names = ("input_ids", "attention_mask", *(("token_type_ids",) if joined.front.plan.family == "bert" else ()))
    example = {name: inputs[name] for name in names}
    difference = 0.0

    def write(temporary: Path) -> None:
        nonlocal difference
        write_graph(whole, example, dict.fromkeys(names, ("batch", "tokens")), temporary, metadata)
        difference = compare_graph(temporary, whole, example)

    files.replace(path, write)
    return difference
