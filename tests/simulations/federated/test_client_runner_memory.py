"""The client runner reuses arrays without overwriting values that are still in use."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from farshore.engines.federated.client_state import LocalClientStates
from farshore.engines.federated.codec import UpdateCodec
from farshore.engines.federated.drift_correction import FedNova, Scaffold
from farshore.engines.federated.local import Sgd
from farshore.engines.federated.methods import FLOATS, INTEGERS, FedAvg, FederatedMethod, Update, Work
from farshore.engines.federated.tree import NamedArrays
from farshore.models.flat_params import FlatModel
from farshore.simulations.federated.client_runner import ClientRunner


class Unweighted(FedAvg):
    """A custom method whose contributions contain the updates' arrays themselves."""

    def contribution(self, down: NamedArrays, update: Update) -> NamedArrays:
        return {**update.tensors, "weight": np.ones(1)}


class Halves(FedAvg):
    """A custom method whose contributions are views of the updates' arrays."""

    def contribution(self, down: NamedArrays, update: Update) -> NamedArrays:
        floats = update.tensors[FLOATS]
        return {"one": floats[:5], "two": floats[5:], INTEGERS: update.tensors[INTEGERS], "weight": np.ones(1)}


METHODS: dict[str, Any] = {
    "fedavg": lambda _: FedAvg(),
    "fedavg with divergence": lambda flat: _measured(flat),
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
    """A regression task with one target per client; clients in ``broken`` send values that are not finite."""

    notes: tuple[str, ...] = ()

    def __init__(self, method: str, broken: tuple[int, ...] = ()) -> None:
        self._method, self._broken = method, broken

    def model(self) -> FlatModel:
        torch.manual_seed(0)
        return FlatModel(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)))

    def method(self, flat: FlatModel) -> FederatedMethod:
        method: FederatedMethod = METHODS[self._method](flat)
        return method

    def work(self, flat: FlatModel, client: int, round_index: int) -> Work:
        x = torch.randn(12, 4, generator=torch.Generator().manual_seed(client))
        lr = float("inf") if client in self._broken else 0.1

        def objective(batch: torch.Tensor) -> torch.Tensor:
            return (flat.module(batch)[:, 0] - client).square().mean()

        return Work(objective, list(x.split(6)), 12 + client, Sgd(lr))

    def evaluate(self, flat: FlatModel, state: NamedArrays) -> dict[str, float]:
        return {}


def run_blocks(
    task: Any, clients: list[int], *, reuse: bool, into: NamedArrays | None = None, repeats: int = 1
) -> NamedArrays:
    runner = ClientRunner(task, UpdateCodec(), LocalClientStates())
    if not reuse:
        runner._method.array_pool = None  # type: ignore[attr-defined]
        runner._method.lends_state = False  # type: ignore[attr-defined]
    flat = task.model()
    method = task.method(flat)
    down = method.sent(method.start(flat))
    results = [runner.train_block(1, 0, clients, down, into if repeat == 0 else None) for repeat in range(repeats)]
    assert results[0].total is not None
    return results[0].total  # returned after all repeats, which must not change it


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("broken", [(), (0,), (0, 1), (2,)])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_sums_with_reused_arrays_equal_those_with_new_arrays(method: str, broken: tuple[int, ...], count: int) -> None:
    task, clients = Lines(method, broken), list(range(count + len(broken)))
    expected = run_blocks(task, clients, reuse=False)
    like: NamedArrays = {name: np.full_like(array, 7) for name, array in expected.items()}
    for into in (None, like):
        got = run_blocks(task, clients, reuse=True, into=into, repeats=3)
        assert got.keys() == expected.keys()
        assert all(got[name].tobytes() == expected[name].tobytes() for name in expected)


def test_sum_is_written_to_the_given_arrays() -> None:
    task = Lines("fedavg")
    like: NamedArrays = {
        name: np.full_like(array, 7) for name, array in run_blocks(task, [0, 1, 2], reuse=True).items()
    }
    got = run_blocks(task, [0, 1, 2], reuse=True, into=like)
    assert got[FLOATS] is like[FLOATS]
    assert got[INTEGERS] is like[INTEGERS]


def test_the_state_of_a_client_is_not_copied_where_nothing_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[str] = []
    monkeypatch.setattr(FedAvg, "copy_array", lambda self, array: copied.append(type(self).__name__) or array.copy())
    for method in METHODS:
        run_blocks(Lines(method), [0, 1, 2], reuse=True)
    assert set(copied) == {"FedNova", "Halves", "Scaffold", "Unweighted"}
