"""Federated runs of real programs: bit-identical to a reference, also when resumed, without invalid updates."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from pydantic import BaseModel
from torch import nn

from farshore.core.errors import PeerLostError, RunFailedError
from farshore.core.message import Message, Tensor
from farshore.core.seeds import Seed
from farshore.engines.federated.client import Client
from farshore.engines.federated.client_pool import cohort
from farshore.engines.federated.codec import UpdateCodec
from farshore.engines.federated.config import Downlink, FederatedConfig, Uplink
from farshore.engines.federated.drift_correction import FedNova, Scaffold
from farshore.engines.federated.local import Sgd
from farshore.engines.federated.methods import FedAvg, FederatedMethod, Work
from farshore.engines.federated.model_checkpoints import named_tensors
from farshore.engines.federated.node_pool import NodePool
from farshore.engines.federated.rounds import Rounds
from farshore.engines.federated.tree import NamedArrays, TreeSum
from farshore.models.flat_params import FlatModel
from farshore.runs.history import read_history
from farshore.runs.model_states import load_state
from farshore.simulations.in_process import InProcessRun

NODES = ("a", "b", "c", "d")
SCHEDULE = FederatedConfig(rounds=4, per_round=3, checkpoint_every=2)
METHODS: dict[str, Callable[[FlatModel], FederatedMethod]] = {
    "fedavg": lambda _: FedAvg(),
    "scaffold": lambda _: Scaffold(),
    "fednova": lambda flat: FedNova(flat.layout.trainable),
}


class Toy:
    """A regression task with a different target per client, with batch norm."""

    notes: list[str] = []  # noqa: RUF012

    def __init__(self, method: str = "fedavg") -> None:
        self._method = method

    def model(self) -> FlatModel:
        flat = FlatModel(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 1)))
        with torch.no_grad():  # not from the global generator, since nodes are threads here
            flat.trained.uniform_(-0.5, 0.5, generator=torch.Generator().manual_seed(1))
        return flat

    def method(self, flat: FlatModel) -> FederatedMethod:
        return METHODS[self._method](flat)

    def work(self, flat: FlatModel, client: int, round_index: int) -> Work:
        generator = torch.Generator().manual_seed(100 * client + round_index)
        x = torch.randn(8 * (client + 1), 4, generator=generator)
        return Work(
            lambda batch: (flat.module(batch)[:, 0] - batch.sum(1) * (client + 1)).square().mean(),
            list(x.split(8)),
            len(x),
            Sgd(0.05 * 0.9**round_index),
        )

    def evaluate(self, flat: FlatModel, state: NamedArrays) -> dict[str, float]:
        flat.load(state["floats"], state["integers"])
        return {"norm": float(flat.trained.norm())}


class Config(BaseModel):
    """No settings."""


class Federated:
    """A workload of the toy task; ``spoil(node, message)`` may change an update, or raise."""

    name, summary, config, uses_torch = "toy", "", Config, True
    on_lost_node: Literal["restart", "continue"] = "continue"

    def __init__(self, method: str = "fedavg", schedule: FederatedConfig = SCHEDULE, deadline: float = 0.0) -> None:
        self.toy, self.schedule, self.deadline = Toy(method), schedule, deadline
        self.codec = UpdateCodec(schedule.uplink, schedule.downlink, self.toy.model().layout)
        self.spoil: Callable[[str, Message], Message] = lambda _, message: message
        self.rounds: Rounds | None = None

    def node_data(self, config: BaseModel) -> tuple[tuple[str, ...], ...]:
        return ()

    def server_program(self, session: Any, config: BaseModel) -> dict[str, Any]:
        self.rounds = Rounds(session, self.toy, NodePool(session, self.codec, deadline=self.deadline), self.schedule)
        history = self.rounds.run()
        for channel in session.channels.values():
            try:
                channel.send(Message("control", fields={"what": "done"}))
            except PeerLostError:
                continue
        return {"history": history}

    def node_program(self, session: Any, config: BaseModel) -> None:
        node = session.node

        class SpoilingChannel:
            def send(_, message: Message) -> None:  # noqa: N805
                session.channel.send(self.spoil(node, message) if message.kind == "update" else message)

            receive, expect = session.channel.receive, session.channel.expect

        spoiling = copy(session)
        spoiling.channel = SpoilingChannel()
        Client(spoiling, self.toy, self.codec).run()


def run(workload: Federated, path: Path, **more: Any) -> tuple[NamedArrays, list[dict[str, Any]]]:
    result = InProcessRun(workload, Config(), path, NODES, seed=3, **more).run()
    assert workload.rounds is not None
    return workload.rounds.state, result["history"]


def reference(
    method: str, schedule: FederatedConfig, absent: Callable[[int, int], bool] = lambda *_: False
) -> NamedArrays:
    """Compute the last state without programs, messages and channels."""
    toy = Toy(method)
    flat = toy.model()
    used = toy.method(flat)
    state = used.start(flat)
    client_states: list[dict[str, torch.Tensor]] = [{} for _ in NODES]
    for round_index in range(1, schedule.rounds + 1):
        chosen = cohort(Seed(3), round_index, len(NODES), schedule.per_round)
        tree = TreeSum(len(chosen))
        for position, client in enumerate(chosen):
            work = toy.work(flat, client, round_index)
            work.client_state = client_states[client]
            if absent(round_index, client):
                tree.skip(position)
            else:
                tree.add(position, used.contribution(state, used.local(flat, state, work)))
        total = tree.total()
        if total is not None:
            state = used.finish(state, total, len(NODES))
    return state


@pytest.mark.parametrize("method", METHODS)
def test_programs_are_bit_identical_to_the_reference(tmp_path: Path, method: str) -> None:
    state, history = run(Federated(method), tmp_path / "run")
    expected = reference(method, SCHEDULE)
    assert state.keys() == expected.keys()
    assert [n for n in state if not np.array_equal(state[n], expected[n])] == []
    assert [entry["round"] for entry in history] == [1, 2, 3, 4]
    assert all(len(entry["cohort"]) == 3 and entry["missing"] == {} for entry in history)
    assert history[0]["train_loss"] > history[-1]["train_loss"]


def test_cohorts_depend_only_on_seed_and_round() -> None:
    drawn = [cohort(Seed(3), r, 100_000, 10) for r in range(1, 50)]
    assert drawn == [cohort(Seed(3), r, 100_000, 10) for r in range(1, 50)]
    assert all(c == sorted(set(c)) and len(c) == 10 for c in drawn)
    assert len({tuple(c) for c in drawn}) == 49
    counts = np.bincount([c for r in range(2000) for c in cohort(Seed(1), r, 10, 3)], minlength=10)
    assert np.abs(counts - 600).max() < 100


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_is_bit_identical_to_an_uninterrupted_one(tmp_path: Path, method: str) -> None:
    class Died(BaseException):
        pass

    dying = Federated(method)

    def die(node: str, message: Message) -> Message:
        if message.round == 4:
            raise Died
        return message

    dying.spoil = die
    with pytest.raises((Died, RunFailedError)):
        run(dying, tmp_path / "run")
    state, history = run(Federated(method), tmp_path / "run")
    expected = reference(method, SCHEDULE)
    assert [n for n in state if not np.array_equal(state[n], expected[n])] == []
    assert [entry["round"] for entry in history] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "uplink", [Uplink(encoding="topk", fraction=0.1), Uplink(encoding="lowrank", rank=1)], ids=["topk", "lowrank"]
)
def test_a_resumed_run_keeps_the_stored_encoding_errors(tmp_path: Path, uplink: Uplink) -> None:
    schedule = SCHEDULE.model_copy(update={"uplink": uplink, "downlink": Downlink(encoding="bf16")})
    whole, _ = run(Federated("scaffold", schedule), tmp_path / "whole")
    dying = Federated("scaffold", schedule)

    def die(node: str, message: Message) -> Message:
        if message.round == 4:
            raise OSError("gone")
        return message

    dying.spoil = die
    with pytest.raises(RunFailedError, match="gone"):
        run(dying, tmp_path / "run")
    state, _ = run(Federated("scaffold", schedule), tmp_path / "run")
    assert [n for n in state if not np.array_equal(state[n], whole[n])] == []
    no_feedback = schedule.model_copy(update={"uplink": uplink.model_copy(update={"error_feedback": False})})
    other, _ = run(Federated("scaffold", no_feedback), tmp_path / "other")
    assert not np.array_equal(state["floats"], other["floats"])


def _changed(message: Message, **arrays: Any) -> Message:
    return replace(message, tensors={**message.tensors, **{n: Tensor(a) for n, a in arrays.items()}})


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda m: _changed(m, floats=np.full_like(m.array("floats"), np.nan)), "'floats' has non-finite values"),
        (lambda m: _changed(m, floats=m.array("floats")[:-1]), "got float32"),
        (lambda m: _changed(m, floats=m.array("floats").astype(np.float64)), "got float64"),
        (lambda m: replace(m, tensors={"floats": m.tensors["floats"]}), "expected tensors"),
        (lambda m: replace(m, fields={**m.fields, "samples": -5}), "got -5 samples"),
        (lambda m: replace(m, fields={}), "'samples' is missing"),
        (lambda m: replace(m, kind="activation"), "got a 'activation' message for round"),
    ],
)
def test_an_invalid_update_is_left_out_with_a_reason_and_the_round_continues(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[Message], Message], why: str
) -> None:
    workload = Federated()
    workload.spoil = lambda node, message: spoil(message) if node == "b" else message
    with caplog.at_level("INFO"):
        state, history = run(workload, tmp_path / "run")
    expected = reference("fedavg", SCHEDULE, absent=lambda _, client: client == 1)
    assert [n for n in state if not np.array_equal(state[n], expected[n])] == []
    reasons = [entry["missing"]["1"] for entry in history if 1 in entry["cohort"]]
    assert reasons
    assert all(why in reason for reason in reasons)
    assert "b left out" in caplog.text


def test_a_round_with_too_few_replies_leaves_the_model_unchanged(tmp_path: Path) -> None:
    workload = Federated(schedule=SCHEDULE.model_copy(update={"least": 2}))
    workload.spoil = lambda node, message: replace(message, fields={}) if node != "a" else message
    with pytest.raises(RunFailedError, match="no round has changed the model"):
        run(workload, tmp_path / "run")
    state, _ = load_state(tmp_path / "run" / "states" / "last.safetensors")
    start = named_tensors(Toy().model().layout, Toy().method(Toy().model()).start(Toy().model()))
    assert all(np.array_equal(state[name], start[name]) for name in start)
    history = read_history(tmp_path / "run", SCHEDULE.rounds)
    assert all(len(entry["missing"]) >= 2 for entry in history)
    assert all("of at least 2 replies" in entry["unchanged"] for entry in history)


def test_a_late_update_is_not_added_to_a_later_round(tmp_path: Path) -> None:
    import threading

    next_round = threading.Event()
    workload = Federated(schedule=FederatedConfig(rounds=2, per_round=4), deadline=2.0)

    def wait(node: str, message: Message) -> Message:
        if node == "d" and message.round == 1:
            assert next_round.wait(60)
        elif message.round == 2:
            next_round.set()
        return message

    workload.spoil = wait
    state, history = run(workload, tmp_path / "run")
    assert [entry["missing"] for entry in history] == [{"3": "no answer before the deadline"}, {}]
    expected = reference(
        "fedavg", workload.schedule, absent=lambda round_index, client: (round_index, client) == (1, 3)
    )
    assert np.array_equal(state["floats"], expected["floats"])


def test_cohorts_larger_than_the_population_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFailedError, match="per_round is 5, but there are only 4 clients"):
        run(Federated(schedule=SCHEDULE.model_copy(update={"per_round": 5})), tmp_path / "run")
