"""Every program of split fine-tuning keeps its tensors on its device, and bf16 changes nothing else on the wire."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel

from farshore.algorithms.split_fine_tuning.cloud_program import CloudProgram
from farshore.algorithms.split_fine_tuning.config import SplitFineTuning
from farshore.algorithms.split_fine_tuning.edge_program import EdgeProgram
from farshore.algorithms.split_fine_tuning.unsplit import UnsplitTraining, train_unsplit
from farshore.core.errors import RunFailedError
from farshore.core.message import Message
from farshore.runs.checkpoints import CheckpointStore

LOSSY = {"cut": "ffn_svd", "rank": 8, "up": "int4", "down": "int4", "dropout": 0.1}
#: Together, the settings that send or compute something of their own.
CASES: dict[str, dict[str, Any]] = {
    "averaged fronts": {**LOSSY, "average_every": 2, "checkpoint_every": 2},
    "sentence vectors, decoder network": {**LOSSY, "sentence_vector": 4, "decoder": "mlp", "micro_batches": 3},
    "padded, whole activations": {"ragged": False, "dropout": 0.1, "up": "int8", "down": "int8", "head": "last"},
    "frozen front": {**LOSSY, "freeze": "front+codec", "residual": "drop", "init": "svd"},
}


@pytest.fixture(autouse=True)
def same_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Use kernels of which the CPU and the simulated device have the same: attention and AdamW without fusion."""
    fused = torch.optim.AdamW
    monkeypatch.setattr(torch.optim, "AdamW", lambda groups, **options: fused(groups, **{**options, "fused": False}))
    with sdpa_kernel(SDPBackend.MATH):
        yield


def enter(context: Callable[[], AbstractContextManager[Any]], patch: pytest.MonkeyPatch, *classes: type) -> None:
    """Let the programs of some classes run within a context."""

    def within(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            with context():
                return function(*args, **kwargs)

        return run

    for each in classes:
        for name in ("__init__", "run", "step", "restore", "save"):
            if name in vars(each):
                patch.setattr(each, name, within(vars(each)[name]))


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n].detach().cpu(), b[n].detach().cpu()) for n in a)


@pytest.mark.parametrize("case", CASES)
def test_a_run_on_a_device_has_the_bits_of_the_cpu(
    case: str, runner: Any, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = runner.config(**CASES[case])
    expected = runner.run(config, 2, directory=tmp_path / "cpu")
    enter(request.getfixturevalue("simulated_device"), monkeypatch, CloudProgram, EdgeProgram)
    found = runner.run(config, 2, directory=tmp_path / "device")
    assert {p.device.type for p in found.cloud.trunk.parameters()} == {"lazy"}
    assert {p.device.type for edge in found.edges.values() for p in edge.front.parameters()} == {"lazy"}
    assert found.losses == expected.losses
    assert found.result == expected.result
    assert same(found.weights(), expected.weights())
    # In-process rows are in the order of sending, which depends on timing.
    rows = [
        sorted((r.node, r.direction, r.kind, r.step, r.micro, r.frame_bytes) for r in o.rows) for o in (found, expected)
    ]
    assert rows[0] == rows[1]
    files = sorted(path.relative_to(tmp_path / "cpu") for path in (tmp_path / "cpu").rglob("*.safetensors"))
    assert files
    assert all(same(load_file(tmp_path / "cpu" / f), load_file(tmp_path / "device" / f)) for f in files)


def test_a_checkpoint_of_the_cpu_is_resumed_on_a_device(
    runner: Any, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = runner.config(**CASES["averaged fronts"])
    expected = runner.run(config, 2)

    def stop(owner: str, message: Message) -> Message:
        if owner == "server" and message.kind == "activation" and message.step == 3:
            raise RunFailedError("stopped")
        return message

    with pytest.raises(RunFailedError, match="stopped"):
        runner.run(config, 2, directory=tmp_path / "run", on_receive=stop)
    enter(request.getfixturevalue("simulated_device"), monkeypatch, CloudProgram, EdgeProgram)
    resumed = runner.run(config, 2, directory=tmp_path / "run")
    assert resumed.cloud.first_step == 2
    assert same(resumed.weights(), expected.weights())


def test_the_unsplit_reference_on_a_device_has_the_bits_of_the_cpu(
    runner: Any, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = runner.config(dropout=0.1, checkpoint_every=2)
    train = functools.partial(train_unsplit, config, 7, 2, runner.find)
    expected = train(checkpoints=CheckpointStore(tmp_path / "cpu"))
    enter(request.getfixturevalue("simulated_device"), monkeypatch, UnsplitTraining)
    assert train(checkpoints=CheckpointStore(tmp_path / "device")) == expected
    assert train(checkpoints=CheckpointStore(tmp_path / "cpu")) == expected, "resumed after the last step"


def test_bf16_sends_float32_of_about_the_same_values(runner: Any) -> None:
    sent: dict[str, list[Message]] = {}

    def keep(precision: str) -> Callable[[str, Message], Message]:
        def hook(owner: str, message: Message) -> Message:
            if message.kind in ("activation", "gradient"):
                sent.setdefault(precision, []).append(message)
            return message

        return hook

    outcomes = {
        p: runner.run(runner.config(cut="ffn_svd", rank=8, init="svd", precision=p), on_send=keep(p))
        for p in ("fp32", "bf16")
    }
    for exact, rounded in zip(sent["fp32"][:2], sent["bf16"][:2], strict=True):  # the first step: equal weights
        a, b = exact.array("codes"), rounded.array("codes")
        assert a.dtype == b.dtype == np.float32
        assert 0 < np.abs(a - b).max() < 0.1 * np.abs(a).max()
    weights = [outcome.weights() for outcome in outcomes.values()]
    assert all(w.dtype in (torch.float32, torch.int64) for w in weights[1].values())
    assert not same(*weights)
    losses = [outcome.losses for outcome in outcomes.values()]
    assert losses[1] == pytest.approx(losses[0], rel=0.1)
    # The gradients in bf16 come from a graph in bf16: they are not rounded on the way.
    assert any(np.any(m.array("codes").view(np.uint32) & 0xFFFF) for m in sent["bf16"] if m.kind == "gradient")


def test_the_unsplit_reference_uses_the_precision(runner: Any) -> None:
    losses = [train_unsplit(runner.config(precision=p, steps=2), 7, 1, runner.find)["loss"] for p in ("fp32", "bf16")]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.1)


def test_fp16_is_refused_with_the_reason() -> None:
    with pytest.raises(ValidationError, match=r"skip a step together.*use precision=bf16"):
        SplitFineTuning(precision="fp16")
