"""A player uses its arrays again, and whoever still looks at one never sees another client's numbers in it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from farshore.engines.federated.client_state import LocalClientStates
from farshore.engines.federated.codec import UpdateCodec
from farshore.engines.federated.local import Sgd
from farshore.engines.federated.methods import (
    FLOATS,
    INTEGERS,
    FedAvg,
    FederatedMethod,
    FedNova,
    Scaffold,
    Update,
    Work,
)
from farshore.engines.federated.tree import Part
from farshore.models.flat_params import FlatModel
from farshore.simulations.federated.client_runner import ClientRunner


class Unweighted(FedAvg):
    """A method of one's own, whose summands are the updates' very arrays."""

    def contribution(self, down: Part, update: Update) -> Part:
        return {**update.tensors, "weight": np.ones(1)}


class Halves(FedAvg):
    """Another, whose summands are views of them."""

    def contribution(self, down: Part, update: Update) -> Part:
        floats = update.tensors[FLOATS]
        return {"one": floats[:5], "two": floats[5:], INTEGERS: update.tensors[INTEGERS], "weight": np.ones(1)}


METHODS: dict[str, Any] = {
    "fedavg": lambda _: FedAvg(),
    "told": lambda flat: _measured(flat),
    "scaffold": lambda _: Scaffold(),
    "fednova": lambda flat: FedNova(flat.layout.trainable),
    "unweighted": lambda _: Unweighted(),
    "halves": lambda _: Halves(),
}


def _measured(flat: FlatModel) -> FedAvg:
    method = FedAvg()
    method.divergence_size = flat.layout.trainable
    return method


class Lines:
    """Clients with lines of their own to fit; ``broken`` ones send what is not finite."""

    notes: tuple[str, ...] = ()

    def __init__(self, method: str, broken: tuple[int, ...] = ()) -> None:
        self._method, self._broken = method, broken

    def model(self) -> FlatModel:
        torch.manual_seed(0)
        return FlatModel(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)))

    def method(self, flat: FlatModel) -> FederatedMethod:
        made: FederatedMethod = METHODS[self._method](flat)
        return made

    def work(self, flat: FlatModel, client: int, round_index: int) -> Work:
        x = torch.randn(12, 4, generator=torch.Generator().manual_seed(client))
        lr = float("inf") if client in self._broken else 0.1

        def objective(batch: torch.Tensor) -> torch.Tensor:
            return (flat.module(batch)[:, 0] - client).square().mean()

        return Work(objective, list(x.split(6)), 12 + client, Sgd(lr))

    def evaluate(self, flat: FlatModel, state: Part) -> dict[str, float]:
        return {}


def played(task: Any, clients: list[int], *, spare: bool, into: Part | None = None, times: int = 1) -> Part:
    player = ClientRunner(task, UpdateCodec(), LocalClientStates())
    if not spare:
        player._method.array_pool = None  # type: ignore[attr-defined]
    flat = task.model()
    method = task.method(flat)
    down = method.sent(method.start(flat))
    blocks = [player.play_part(1, 0, clients, down, into if turn == 0 else None) for turn in range(times)]
    assert blocks[0].total is not None
    return blocks[0].total  # looked at after all turns


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("broken", [(), (0,), (0, 1), (2,)])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_sums_are_those_of_new_arrays(method: str, broken: tuple[int, ...], count: int) -> None:
    task, clients = Lines(method, broken), list(range(count + len(broken)))
    expected = played(task, clients, spare=False)
    like: Part = {name: np.full_like(array, 7) for name, array in expected.items()}
    for into in (None, like):
        got = played(task, clients, spare=True, into=into, times=3)
        assert got.keys() == expected.keys()
        assert all(got[name].tobytes() == expected[name].tobytes() for name in expected)


def test_a_sum_is_made_where_it_is_wanted() -> None:
    task = Lines("fedavg")
    like: Part = {name: np.full_like(array, 7) for name, array in played(task, [0, 1, 2], spare=True).items()}
    got = played(task, [0, 1, 2], spare=True, into=like)
    assert got[FLOATS] is like[FLOATS]
    assert got[INTEGERS] is like[INTEGERS]
