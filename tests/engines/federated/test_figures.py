"""What clients tell with their updates: told on, weighted by samples, and no harm whatever a node says."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from farshore.algorithms.vhl.workload import VHLWorkload
from farshore.core.message import Message, Scalar
from farshore.engines.federated.messages import MOST_FIGURES
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


class Spied(VHLWorkload):
    """The workload, with what each node's updates say kept, and changed by ``spoil`` on node b."""

    def __init__(self, spoil: Callable[[Fields], Fields] = lambda fields: fields) -> None:
        self._spoil = spoil
        self.said: dict[tuple[int, str], Fields] = {}

    def node_program(self, session: Any, config: Any) -> None:
        def send(message: Message) -> None:
            if message.kind == "update":
                self.said[message.round, session.node] = dict(message.fields)
                if session.node == "b":
                    message = replace(message, fields=self._spoil(dict(message.fields)))
            session.channel.send(message)

        class Channel:
            receive = session.channel.receive

        Channel.send = staticmethod(send)  # type: ignore[attr-defined]
        super().node_program(replace(session, channel=Channel()), config)


def run(workload: Spied, path: Path) -> tuple[list[dict[str, Any]], dict[str, Any], list[dict[str, float]]]:
    """The history, the last state, and the metrics as they were told."""
    metrics: list[dict[str, float]] = []
    config = workload.config.model_validate(SETTINGS)
    told = lambda step, values: metrics.append(dict(values))  # noqa: E731
    InProcessRun(workload, config, path, NODES, seed=1, recorder=lambda _: None, on_metrics=told).run()
    state, _ = CheckpointStore(path / "server").load(2)
    return read_history(path, 2), state, metrics


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> tuple[Spied, list[dict[str, Any]], dict[str, Any]]:
    workload = Spied()
    history, state, _ = run(workload, tmp_path_factory.mktemp("honest") / "run")
    return workload, history, state


def mean(said: list[Fields], name: str) -> float:
    weights = [float(fields["samples"]) for fields in said]
    return float(np.average([float(fields[name]) for fields in said], weights=weights))


def test_updates_tell_the_terms_of_the_loss_and_rounds_their_means_by_samples(honest: Any) -> None:
    workload, history, _ = honest
    for entry in history:
        said = [workload.said[entry["round"], node] for node in NODES]
        assert all(fields.keys() == {"samples", "steps", "loss", *TERMS} for fields in said)
        assert len({fields["samples"] for fields in said}) == 3  # or weights would not matter
        for name in TERMS:
            assert entry[name] == pytest.approx(mean(said, name), rel=1e-12)
        assert entry["train_loss"] == pytest.approx(mean(said, "loss"), rel=1e-12)


@pytest.mark.parametrize(
    ("lies", "without"),
    [
        ({"train_ce": float("nan"), "align_loss": float("-inf")}, ("train_ce", "align_loss")),
        ({"train_ce": "much", "virtual_ce": 7, "noise_loss": True}, ("train_ce", "virtual_ce", "noise_loss")),
        ({"acc": 2.0, "divergence": -1.0, "cohort": 1.0, "round": 9.0, "payload_up": 1.0, "lr": 5.0}, ()),
        ({"seconds_train": 1e9, "\u202e": 1.0, "\n": 1.0, "a" * 256: 1.0}, ()),
        ({f"figure {i}": 1.0 for i in range(MOST_FIGURES - len(TERMS))}, ()),
    ],
    ids=["not finite", "no numbers", "names of the server's", "strange names", "as many as may be"],
)
def test_what_a_node_tells_changes_nothing_but_its_own_share(
    tmp_path: Path, honest: Any, lies: Fields, without: tuple[str, ...]
) -> None:
    _, history, state = honest
    workload = Spied(lambda fields: {**fields, **lies})
    found, last, metrics = run(workload, tmp_path / "run")
    assert all(np.array_equal(last[name], state[name]) for name in state)
    for entry, undisturbed in zip(found, history, strict=True):
        assert entry["missing"] == {}
        others = [workload.said[entry["round"], node] for node in ("a", "c")]
        for name in without:
            assert entry.pop(name) == pytest.approx(mean(others, name), rel=1e-12)
        assert entry == {name: value for name, value in undisturbed.items() if name not in without}
    json.dumps(metrics, allow_nan=False)


def test_a_huge_figure_breaks_neither_the_round_nor_the_metrics(tmp_path: Path, honest: Any) -> None:
    _, _, state = honest
    found, last, metrics = run(
        Spied(lambda fields: {**fields, "train_ce": 1.7e308, "loss": -1.7e308}), tmp_path / "run"
    )
    assert all(np.array_equal(last[name], state[name]) for name in state)
    assert [entry["missing"] for entry in found] == [{}, {}]
    assert len(metrics) == 2
    json.dumps(metrics, allow_nan=False)


def test_a_node_that_tells_too_much_is_left_out_by_name(tmp_path: Path) -> None:
    more = {f"figure {i}": 1.0 for i in range(MOST_FIGURES)}
    found, _, _ = run(Spied(lambda fields: {**fields, **more}), tmp_path / "run")
    for entry in found:
        assert entry["missing"] == {"1": f"it tells {MOST_FIGURES + len(TERMS)} figures, more than {MOST_FIGURES}"}
        assert all(np.isfinite(entry[name]) for name in TERMS)
