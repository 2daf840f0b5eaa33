"""The benchmark work as a federated workload, registered for worker processes by ``pyproject.toml``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from work import Work, build, images

from farshore.core.seeds import Seed
from farshore.engines.federated.config import FederatedConfig
from farshore.engines.federated.local import Sgd
from farshore.engines.federated.methods import FLOATS, INTEGERS, FedAvg, Update
from farshore.engines.federated.methods import Work as ClientWork
from farshore.engines.federated.workload import FederatedWorkload
from farshore.models.flat_params import FlatModel


class Config(FederatedConfig):
    """Configuration: the work as JSON."""

    work: str = ""


class Echo(FedAvg):
    """FedAvg without training: clients return the model unchanged."""

    def local(self, flat: FlatModel, down: Any, work: ClientWork) -> Update:
        return Update({name: self.copy_array(down[name]) for name in (FLOATS, INTEGERS)}, 1, 1, 0.0)


class Task:
    """An epoch of SGD on each client's window of the images."""

    notes: tuple[str, ...] = ()

    def __init__(self, work: Work, folder: Path) -> None:
        self._work = work
        self._x, self._y = images(str(folder), work) if work.shape else (None, None)

    def model(self) -> FlatModel:
        return FlatModel(build(self._work).train())

    def method(self, flat: FlatModel) -> FedAvg:
        return FedAvg() if self._work.shape else Echo()

    def work(self, flat: FlatModel, client: int, round_index: int) -> ClientWork:
        work = self._work
        if self._x is None or self._y is None:
            return ClientWork(_nothing, (), 1, Sgd(work.lr))
        first, count = work.window(client)
        parts = [torch.split(t[first : first + count], work.batch) for t in (self._x, self._y)]

        def objective(batch: Any) -> torch.Tensor:
            return F.cross_entropy(flat.module(batch[0]), batch[1])

        return ClientWork(objective, list(zip(*parts, strict=True)), count, Sgd(work.lr), sample_losses=_each)

    def evaluate(self, flat: FlatModel, state: Any) -> dict[str, float]:
        return {}


def _each(model: Callable[..., torch.Tensor], batch: Any) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def _nothing(_: Any) -> torch.Tensor:
    return torch.zeros(())


class Workload(FederatedWorkload[Config]):
    """Workload of the benchmark."""

    name = "benchmark_work"
    summary = "the work on which simulators are compared"
    config = Config

    def task(self, config: Config, seed: Seed, find: Callable[[str], Path], population: int) -> Task:
        return Task(Work.loads(config.work), find("images"))


WORKLOAD = Workload()
