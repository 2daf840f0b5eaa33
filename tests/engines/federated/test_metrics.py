"""Metrics that clients report with updates: averaged by samples, and harmless whatever a node sends."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from farshore.algorithms.vhl.workload import VHLWorkload
from farshore.core.control import MOST_VALUES
from farshore.core.message import Message, Scalar
from farshore.runs.checkpoints import CheckpointStore
from farshore.runs.history import read_history
from farshore.simulations.in_process import InProcessRun

pytest.importorskip("sklearn")
pytestmark = [pytest.mark.timeout(180), pytest.mark.usefixtures("one_thread")]

NODES = ("a", "b", "c")
TERMS = ("train_ce", "virtual_ce", "align_loss", "noise_loss")
SETTINGS: dict[str, Any] = {"rounds": 2, "per_round": 3, "local_epochs": 1, "batch": 256, "lr": 0.1, "eval_every": 2}
SETTINGS |= {"virtual": {"per_class": 4, "batch": 16}, "partition": {"kind": "lda", "alpha": 0.5, "min_size": 20}}
Fields = dict[str, Scalar]


class RecordingWorkload(VHLWorkload):
    """The workload, recording the fields of each node's updates; ``spoil`` changes those of node b."""

    def __init__(self, spoil: Callable[[Fields], Fields] = lambda fields: fields) -> None:
        self._spoil = spoil
        self.fields: dict[tuple[int, str], Fields] = {}

    def node_program(self, session: Any, config: Any) -> None:
        def send(message: Message) -> None:
            if message.kind == "update":
                self.fields[message.round, session.node] = dict(message.fields)
                if session.node == "b":
                    message = replace(message, fields=self._spoil(dict(message.fields)))
            session.channel.send(message)

        class Channel:
            receive, expect = session.channel.receive, session.channel.expect

        Channel.send = staticmethod(send)  # type: ignore[attr-defined]
        super().node_program(replace(session, channel=Channel()), config)


def run(workload: RecordingWorkload, path: Path) -> tuple[list[dict[str, Any]], dict[str, Any], list[dict[str, float]]]:
    """Run the workload; return the history, the last state and the metrics."""
    metrics: list[dict[str, float]] = []
    config = workload.config.model_validate(SETTINGS)
    on_metrics = lambda step, values: metrics.append(dict(values))  # noqa: E731
    InProcessRun(workload, config, path, NODES, seed=1, recorder=lambda _: None, on_metrics=on_metrics).run()
    state, _ = CheckpointStore(path / "server").load(2)
    return read_history(path, 2), state, metrics


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> tuple[RecordingWorkload, list[dict[str, Any]], dict[str, Any]]:
    workload = RecordingWorkload()
    history, state, _ = run(workload, tmp_path_factory.mktemp("honest") / "run")
    return workload, history, state


def mean(updates: list[Fields], name: str) -> float:
    weights = [float(fields["samples"]) for fields in updates]
    return float(np.average([float(fields[name]) for fields in updates], weights=weights))


def test_updates_report_loss_terms_and_rounds_their_sample_weighted_means(honest: Any) -> None:
    workload, history, _ = honest
    for entry in history:
        updates = [workload.fields[entry["round"], node] for node in NODES]
        assert all(fields.keys() == {"samples", "steps", "loss", *TERMS} for fields in updates)
        assert len({fields["samples"] for fields in updates}) == 3  # otherwise the weights would not matter
        for name in TERMS:
            assert entry[name] == pytest.approx(mean(updates, name), rel=1e-12)
        assert entry["train_loss"] == pytest.approx(mean(updates, "loss"), rel=1e-12)


@pytest.mark.parametrize(
    ("forged", "excluded"),
    [
        ({"train_ce": float("nan"), "align_loss": float("-inf")}, ("train_ce", "align_loss")),
        ({"acc": 2.0, "divergence": -1.0, "cohort": 1.0, "round": 9.0, "payload_up": 1.0, "lr": 5.0}, ()),
        ({"seconds_train": 1e9, "\u202e": 1.0, "\n": 1.0, "a" * 256: 1.0}, ()),
        ({f"metric {i}": 1.0 for i in range(MOST_VALUES - len(TERMS))}, ()),
    ],
    ids=["not finite", "names used by the server", "strange names", "maximum number"],
)
def test_forged_metrics_change_only_the_nodes_own_contribution(
    tmp_path: Path, honest: Any, forged: Fields, excluded: tuple[str, ...]
) -> None:
    _, history, state = honest
    workload = RecordingWorkload(lambda fields: {**fields, **forged})
    found, last, metrics = run(workload, tmp_path / "run")
    assert all(np.array_equal(last[name], state[name]) for name in state)
    for entry, expected in zip(found, history, strict=True):
        assert entry["missing"] == {}
        others = [workload.fields[entry["round"], node] for node in ("a", "c")]
        for name in excluded:
            assert entry.pop(name) == pytest.approx(mean(others, name), rel=1e-12)
        assert entry == {name: value for name, value in expected.items() if name not in excluded}
    json.dumps(metrics, allow_nan=False)


def test_a_huge_metric_breaks_neither_the_round_nor_the_metrics(tmp_path: Path, honest: Any) -> None:
    _, _, state = honest
    found, last, metrics = run(
        RecordingWorkload(lambda fields: {**fields, "train_ce": 1.7e308, "loss": -1.7e308}), tmp_path / "run"
    )
    assert all(np.array_equal(last[name], state[name]) for name in state)
    assert [entry["missing"] for entry in found] == [{}, {}]
    assert len(metrics) == 2
    json.dumps(metrics, allow_nan=False)


@pytest.mark.parametrize(
    ("forged", "why"),
    [
        (
            {f"metric {i}": 1.0 for i in range(MOST_VALUES)},
            f"{MOST_VALUES + len(TERMS)} values exceed the limit of {MOST_VALUES}",
        ),
        ({"train_ce": "much"}, "expected float, got str"),
        ({"virtual_ce": 7}, "expected float, got int"),
        ({"samples": 1.5}, "expected int, got float"),
        ({"loss": True}, "expected float, got bool"),
        ({"what": "update"}, "its update: expected 'update', got a 'update' message 'update'"),
    ],
    ids=["too many", "text", "integer", "samples", "loss", "name"],
)
def test_a_node_whose_update_has_an_invalid_header_is_left_out_with_a_reason(
    tmp_path: Path, forged: Fields, why: str
) -> None:
    found, _, _ = run(RecordingWorkload(lambda fields: {**fields, **forged}), tmp_path / "run")
    for entry in found:
        assert entry["missing"].keys() == {"1"}
        assert entry["missing"]["1"].endswith(why)
        assert all(np.isfinite(entry[name]) for name in TERMS)
