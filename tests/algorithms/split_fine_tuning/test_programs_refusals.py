"""Refusals of split fine-tuning: different models or plans, non-finite values, invalid messages and settings."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from farshore.algorithms.split_fine_tuning.builders import Builder
from farshore.algorithms.split_fine_tuning.cloud_program import CloudProgram
from farshore.algorithms.split_fine_tuning.config import SplitFineTuning
from farshore.algorithms.split_fine_tuning.edge_program import EdgeProgram
from farshore.algorithms.split_fine_tuning.front_averaging import weighted_mean
from farshore.algorithms.split_fine_tuning.handshake import agree_on_schedule, digest_of
from farshore.algorithms.split_fine_tuning.inputs import TrunkInputs
from farshore.algorithms.split_fine_tuning.plan import CutOptions, SplitPlan
from farshore.algorithms.split_fine_tuning.protocol import Offer
from farshore.core.errors import ConfigError, DataError, RefusedError, RunFailedError, WireError
from farshore.core.message import Message, Tensor
from farshore.simulations.in_process import InProcessRun

PLAN = SplitPlan(CutOptions(2, "ffn_svd", 8), "bert", 3, 32, 64, 2, "mean", "0" * 32)


# ---- at the start -------------------------------------------------------------------------------------------------


class DifferentNode:
    """The workload with other settings and other data on one node."""

    name, summary, config, on_lost_node = "apart", "", SplitFineTuning, "restart"

    def __init__(self, node: str, changes: dict[str, Any], data: dict[str, Path]) -> None:
        self.node, self.changes, self.data = node, changes, data

    def server_program(self, session: Any, config: Any) -> dict[str, Any]:
        return CloudProgram(session, config).run()

    def node_program(self, session: Any, config: Any) -> None:
        if session.node == self.node:
            session = replace(session, paths={**session.paths, **self.data})
            config = config.model_copy(update=self.changes)
        EdgeProgram(session, config).run()


def run_with_different_node(runner: Any, changes: dict[str, Any], data: dict[str, Path] | None = None) -> None:
    config = runner.config(cut="ffn_svd", rank=8)
    nodes = ["edge-0", "edge-1"]
    InProcessRun(
        DifferentNode("edge-1", changes, data or {}), config, runner.folder / "run", nodes, 7, runner.data
    ).run()


def test_an_edge_with_other_weights_is_refused(runner: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    other = shutil.copytree(runner.data["tiny"], tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["encoder.layer.0.attention.self.query.weight"][0, 0] += 1e-3
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RefusedError, match=r"'edge-1' and the cloud.*fingerprint"):
        run_with_different_node(runner, {}, {"tiny": other})


@pytest.mark.parametrize("changes", [{"rank": 4}, {"block": 1}, {"residual": "drop"}])
def test_an_edge_with_another_plan_is_refused(runner: Any, changes: dict[str, Any]) -> None:
    with pytest.raises(RefusedError, match=rf"'edge-1' and the cloud.*{next(iter(changes))}"):
        run_with_different_node(runner, changes)


def test_edges_whose_classes_have_other_names_are_refused() -> None:
    names = ["numpy", "torch", "scipy"]
    assert len({digest_of(names), digest_of(names[::-1]), digest_of(["numpy", "torchscipy"])}) == 3
    a, b = (Offer(PLAN.to_json(), digest_of(labels), 10, 5, True) for labels in (names, names[::-1]))
    config = SplitFineTuning(task="docstrings")
    assert agree_on_schedule({"a": a, "b": a}, PLAN, config).steps_per_epoch == 1
    with pytest.raises(RefusedError, match="'a' and 'b' have different classes"):
        agree_on_schedule({"a": a, "b": b}, PLAN, config)


def test_an_edge_announces_its_class_names(runner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Builder.task

    def task(self: Builder, tokenizer: Any) -> Any:
        found = real(self, tokenizer)
        if threading.current_thread().name == "node edge-1":
            found.labels = found.labels[::-1]
        return found

    monkeypatch.setattr(Builder, "task", task)
    with pytest.raises(RefusedError, match="'edge-0' and 'edge-1' have different classes"):
        run_with_different_node(runner, {})


def test_more_edges_than_examples_in_a_step_are_refused(runner: Any) -> None:
    with pytest.raises(ConfigError, match="batch_size=2 cannot be shared by 3 edges"):
        runner.run(runner.config(batch_size=2), 3)


def test_more_edges_than_training_examples_are_refused(runner: Any) -> None:
    with pytest.raises(DataError, match="cannot be divided into 3 shards"):
        runner.run(runner.config(train_samples=2), 3)


def test_an_invalid_block_reports_the_number_of_blocks(runner: Any) -> None:
    with pytest.raises(ConfigError, match="3 blocks"):
        runner.run(runner.config(block=9))


# ---- in a step ----------------------------------------------------------------------------------------------------


def with_array(message: Message, name: str, change: Callable[[Any], Any]) -> Message:
    array = change(np.array(message.array(name)))
    return replace(message, tensors={**message.tensors, name: Tensor(array)})


def poison(array: Any) -> Any:
    array[0, 0] = np.nan
    return array


def failing(runner: Any, hook: Callable[[str, Message], Message], edges: int = 2, **changes: Any) -> tuple[Any, Any]:
    """Make the second step fail, and assert that it changed no weights; return the error and the cloud program."""
    before: dict[str, torch.Tensor] = {}
    optimized = [0]

    def watch(owner: str, message: Message) -> Message:
        if owner == "server" and (message.kind, message.step, message.micro) == ("activation", 1, 0):
            trunk = runner.observed.cloud.trunk
            before.update({n: w.clone() for n, w in trunk.state_dict().items()})
            optimized[0] = runner.observed.cloud.scheduler.last_epoch
        return hook(owner, message)

    with pytest.raises((RunFailedError, WireError)) as caught:
        runner.run(runner.config(**changes), edges, on_receive=watch)
    cloud = runner.observed.cloud
    assert before
    assert optimized[0] == cloud.scheduler.last_epoch == 1, "the step was applied"
    assert all(torch.equal(before[n], w) for n, w in cloud.trunk.state_dict().items())
    return caught.value, cloud


def test_non_finite_codes_fail_the_run_before_the_step(runner: Any) -> None:
    def hook(owner: str, message: Message) -> Message:
        if owner == "server" and message.kind == "activation" and message.step == 1 and message.micro == 1:
            return with_array(message, "codes", poison)
        return message

    error, cloud = failing(runner, hook, micro_batches=2)
    assert isinstance(error, RunFailedError)
    assert "edge 'edge-0' at step 1 sent codes that are not finite" in str(error)
    assert len(cloud.losses) == 1


def test_non_finite_gradients_fail_the_run_with_the_edges_name(runner: Any) -> None:
    def hook(owner: str, message: Message) -> Message:
        if owner == "edge-1" and message.kind == "gradient" and message.step == 1:
            front = runner.observed.edges["edge-1"].front
            kept.update({n: p.detach().clone() for n, p in front.named_parameters()})
            return with_array(message, "codes", poison)
        return message

    kept: dict[str, torch.Tensor] = {}
    with pytest.raises(RunFailedError, match=r"edge-1.*gradients of step 2 are not finite"):
        runner.run(runner.config(), 2, on_receive=hook)
    front = runner.observed.edges["edge-1"].front
    assert kept
    assert all(torch.equal(kept[n], p) for n, p in front.named_parameters())


@pytest.mark.parametrize("up", ["raw", "int4"])
def test_a_front_with_nan_weights_fails_the_run_with_any_encoding(runner: Any, up: str) -> None:
    def hook(owner: str, message: Message) -> Message:
        if owner == "edge-1" and message.kind == "gradient" and message.step == 0:
            for parameter in runner.observed.edges["edge-1"].front.parameters():
                parameter.data[:] = float("nan")
        return message

    with pytest.raises(RunFailedError, match=r"edge-1.*codes of step 2 are not finite"):
        runner.run(runner.config(up=up), 2, on_receive=hook)


@pytest.mark.parametrize("down", ["raw", "int4"])
def test_a_trunk_with_infinite_weights_fails_the_run_before_sending_gradients(runner: Any, down: str) -> None:
    sent: list[int] = []

    def hook(owner: str, message: Message) -> Message:
        if owner == "server" and (message.kind, message.step) == ("activation", 1):
            runner.observed.cloud.trunk.head.linear.weight.data[0, 0] = float("inf")
        if owner == "edge-0" and message.kind == "gradient":
            sent.append(message.step)
        return message

    with pytest.raises(RunFailedError, match=r"edge 'edge-0' became .* at step 2"):
        runner.run(runner.config(down=down), 2, on_receive=hook)
    assert sent == [0]


def test_codes_of_wrong_shape_fail_the_run_with_the_edges_name(runner: Any) -> None:
    def hook(owner: str, message: Message) -> Message:
        if owner == "server" and message.kind == "activation" and message.step == 1:
            return with_array(message, "codes", lambda a: a[:, :-1])
        return message

    error, _ = failing(runner, hook)
    assert "edge 'edge-0' at step 1 sent codes of shape" in str(error)


def test_fewer_or_more_examples_than_announced_fail_the_run(runner: Any) -> None:
    def hook(owner: str, message: Message) -> Message:
        if owner == "server" and message.kind == "activation" and message.step == 1:
            return replace(message, fields={**message.fields, "examples": 5})
        return message

    error, _ = failing(runner, hook, edges=1)
    assert "announced 5 examples for step 2 and sent 8" in str(error)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"examples": 0, "micros": 1},
        {"examples": 4, "micros": 5},
        {"examples": 8, "micros": 2},
        {"examples": 9, "micros": 1},
        {"micros": 1},
        {"examples": 8.0, "micros": 1},
        {"examples": 8, "micros": 1, "more": 1},
    ],
)
def test_invalid_announcements_are_refused(runner: Any, fields: dict[str, int]) -> None:
    def hook(owner: str, message: Message) -> Message:
        if owner == "server" and message.kind == "activation" and message.step == 1:
            return replace(message, fields=fields)
        return message

    error, _ = failing(runner, hook, edges=1)
    assert isinstance(error, WireError)
    assert "edge 'edge-0'" in str(error)


def activation(**changes: Any) -> Message:
    """Return an activation of three sentences of 2, 3 and 1 tokens with codes of width 8."""
    arrays = {"codes": np.ones((6, 8), np.float32), "lengths": np.array([2, 3, 1]), "labels": np.array([0, 1, 1])}
    arrays |= changes
    return Message("activation", tensors={n: Tensor(a) for n, a in arrays.items() if a is not None})


def read(message: Message, ragged: bool = True) -> TrunkInputs:
    device = torch.device("cpu")
    return TrunkInputs.from_message(message, PLAN, ragged=ragged, max_length=4, device=device, sender="edge 'x'")


def test_a_valid_activation_is_read() -> None:
    assert read(activation()).tokens.padded().shape == (3, 3, 8)
    assert read(activation(codes=np.ones((12, 8), np.float32)), ragged=False).tokens.padded().shape == (3, 4, 8)


@pytest.mark.parametrize(
    "changes",
    [
        {"codes": None},
        {"lengths": None},
        {"labels": None},
        {"codes": np.ones((7, 8), np.float32)},
        {"codes": np.ones((6, 9), np.float32)},
        {"codes": np.ones((6, 8, 1), np.float32)},
        {"codes": np.ones((6, 8), np.float64)},
        {"extra": np.ones(3, np.float32)},
        {"lengths": np.array([2, 3, 0])},
        {"lengths": np.array([2, 4])},
        {"lengths": np.array([-1, 3, 4])},
        {"lengths": np.array([1, 5, 0])},
        {"lengths": np.array([2.0, 3.0, 1.0])},
        {"labels": np.array([0, 1, 2])},
        {"labels": np.array([0, 1, -1])},
        {"labels": np.array([0, 1])},
        {"lengths": np.zeros(0, int), "labels": np.zeros(0, int), "codes": np.zeros((0, 8), np.float32)},
        {"sentence": np.ones((3, 4), np.float32)},
        {"mean": np.ones(7, np.float16)},
        {"mean": np.ones(8, np.int64)},
    ],
)
def test_invalid_activations_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(WireError, match="edge 'x'"):
        read(activation(**changes))


def test_lengths_are_checked_before_allocation() -> None:
    with pytest.raises(WireError, match="from 1 to 4"):
        read(activation(lengths=np.array([2, 3, 2**40])))


@pytest.mark.parametrize("rows", [5, 6, 11])
def test_padded_codes_must_have_equal_rows_per_sentence(rows: int) -> None:
    with pytest.raises(WireError, match=f"{rows} codes"):
        read(activation(codes=np.ones((rows, 8), np.float32)), ragged=False)


@pytest.mark.parametrize(
    ("second", "error"),
    [
        ({"a": np.ones(3, np.float32)}, WireError),
        ({"b": np.ones((2, 2), np.float32)}, WireError),
        ({"a": np.full((2, 2), np.nan, np.float32)}, RunFailedError),
    ],
)
def test_invalid_weights_are_refused_with_the_nodes_name(second: Any, error: type[Exception]) -> None:
    first = {"a": np.ones((2, 2), np.float32)}
    messages = [Message("weights", tensors={n: Tensor(a) for n, a in part.items()}) for part in (first, second)]
    with pytest.raises(error, match="edge 'y'"):
        weighted_mean([("x", 0.5, messages[0]), ("y", 0.5, messages[1])])


# ---- configurations -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"rank": 0},
        {"cut": "middle"},
        {"up": "int3"},
        {"average_encoding": "int8"},
        {"batch_size": 0},
        {"epochs": -1},
        {"learning_rate": 0},
        {"warmup": 1.0},
        {"dropout": 1.0},
        {"credits": 0},
        {"micro_batches": 0},
        {"checkpoint_every": 0},
        {"block": 0},
        {"cut": "boundary", "sentence_vector": 4},
        {"cut": "ffn", "decoder": "mlp"},
        {"ranks": 8},
    ],
)
def test_invalid_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SplitFineTuning(**wrong)
