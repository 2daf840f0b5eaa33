"""Simulated clients have the results and frame sizes of real ones, bit for bit."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from farshore.core.message import Message
from farshore.core.seeds import Seed
from farshore.core.transfer import Transfer
from farshore.engines.federated.client import Client
from farshore.engines.federated.client_pool import cohort
from farshore.engines.federated.client_state import LocalClientStates
from farshore.engines.federated.codec import UpdateCodec
from farshore.engines.federated.config import Downlink, Uplink
from farshore.engines.federated.drift_correction import FedNova, Scaffold
from farshore.engines.federated.local import Sgd
from farshore.engines.federated.methods import FedAvg, FederatedMethod, Work
from farshore.engines.federated.node_pool import NodePool
from farshore.engines.federated.tree import NamedArrays
from farshore.models.flat_params import FlatModel
from farshore.simulations.federated.client_runner import ClientRunner
from farshore.simulations.federated.simulated_pool import SimulatedPool
from farshore.simulations.in_process import InProcessRun

METHODS: dict[str, Any] = {"fedavg": lambda _: FedAvg(), "scaffold": lambda _: Scaffold()}
METHODS["fednova"] = lambda flat: FedNova(flat.layout.trainable)
CLIENTS, ROUNDS, COHORT = 6, 3, 4


class Toy:
    """A regression task with data and targets of its own for each client."""

    notes: list[str] = []  # noqa: RUF012

    def __init__(self, method: str) -> None:
        self._method = method

    def model(self) -> FlatModel:
        flat = FlatModel(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 1)))
        with torch.no_grad():
            flat.trained.uniform_(-0.5, 0.5, generator=torch.Generator().manual_seed(1))
        return flat

    def method(self, flat: FlatModel) -> FederatedMethod:
        method: FederatedMethod = METHODS[self._method](flat)
        return method

    def work(self, flat: FlatModel, client: int, round_index: int) -> Work:
        x = torch.randn(8 * (client + 1), 4, generator=torch.Generator().manual_seed(100 * client + round_index))
        return Work(
            lambda batch: (flat.module(batch)[:, 0] - batch.sum(1) * (client + 1)).square().mean(),
            list(x.split(8)),
            len(x),
            Sgd(0.05),
        )

    def evaluate(self, flat: FlatModel, state: NamedArrays) -> dict[str, float]:
        return {}


def rounds(pool: Any, toy: Toy) -> NamedArrays:
    flat = toy.model()
    method = toy.method(flat)
    state = method.start(flat)
    for round_index in range(1, ROUNDS + 1):
        result = pool.round(round_index, cohort(Seed(5), round_index, CLIENTS, COHORT), state, method)
        assert (len(result.replies), result.missing) == (COHORT, {})
        assert result.total is not None
        state = method.finish(state, result.total, CLIENTS)
    return state


class Real:
    """A workload that runs the same rounds between a server program and node programs."""

    name, summary, on_lost_node, uses_torch = "toy", "", "continue", True

    def __init__(self, toy: Toy, codec: UpdateCodec) -> None:
        self.toy, self.codec = toy, codec
        self.state: NamedArrays = {}

    def server_program(self, session: Any, config: Any) -> dict[str, Any]:
        self.state = rounds(NodePool(session, self.codec), self.toy)
        for channel in session.channels.values():
            channel.send(Message("control", fields={"what": "done"}))
        return {}

    def node_program(self, session: Any, config: Any) -> None:
        Client(session, self.toy, self.codec).run()


ENCODINGS: dict[str, tuple[Uplink, Downlink]] = {"raw": (Uplink(), Downlink())}
ENCODINGS |= {
    name: (Uplink(encoding=name, error_feedback=True), Downlink(encoding=name)) for name in ("fp16", "bf16", "int8")
}  # type: ignore[arg-type]
ENCODINGS["int4"] = Uplink(encoding="int4"), Downlink(encoding="bf16")
ENCODINGS["topk"] = Uplink(encoding="topk", fraction=0.1, values="fp16"), Downlink(encoding="int8")
ENCODINGS["lowrank"] = Uplink(encoding="lowrank", rank=1), Downlink()


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("method", METHODS)
def test_simulated_run_has_the_bits_and_the_ledger_of_a_real_one(tmp_path: Path, method: str, encoding: str) -> None:
    toy = Toy(method)
    codec = UpdateCodec(*ENCODINGS[encoding], toy.model().layout)
    real_rows: list[Transfer] = []
    real = Real(toy, codec)
    nodes = [f"client-{i}" for i in range(CLIENTS)]
    InProcessRun(real, None, tmp_path / "run", nodes, recorder=real_rows.append).run()  # type: ignore[arg-type]
    rows: list[Transfer] = []
    pool = SimulatedPool(ClientRunner(toy, codec, LocalClientStates()), CLIENTS, codec, rows.append)
    state = rounds(pool, toy)
    assert [n for n in state if not np.array_equal(state[n], real.state[n])] == []

    def sizes(found: list[Transfer]) -> list[tuple[Any, ...]]:
        names = ("node", "direction", "kind", "encoding", "round", "dense_bytes", "payload_bytes", "frame_bytes")
        return sorted(tuple(asdict(r)[n] for n in names) for r in found if r.kind in ("model", "update"))

    assert sizes(rows) == sizes(real_rows)
    assert len(sizes(rows)) == 2 * ROUNDS * COHORT
    if method == "fedavg" and encoding == "raw":  # rounds × down and up × cohort × bytes of the model
        flat = toy.model()
        assert sum(r.dense_bytes for r in rows) == ROUNDS * 2 * COHORT * flat.layout.payload_bytes
