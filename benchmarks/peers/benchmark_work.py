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
from farshore.engines.federated.methods import FedAvg
from farshore.engines.federated.methods import Work as ClientWork
from farshore.engines.federated.workload import FederatedWorkload
from farshore.models.flat_params import FlatModel


class Config(FederatedConfig):
    """Configuration: the work as JSON."""

    work: str = ""


class Task:
    """An epoch of SGD on each client's window of the images."""

    notes: tuple[str, ...] = ()

    def __init__(self, work: Work, folder: Path) -> None:
        self._work = work
        self._x, self._y = images(str(folder), work)

    def model(self) -> FlatModel:
        return FlatModel(build(self._work).train())

    def method(self, flat: FlatModel) -> FedAvg:
        return FedAvg()

    def work(self, flat: FlatModel, client: int, round_index: int) -> ClientWork:
        work = self._work
        first, count = work.window(client)
        parts = [torch.split(t[first : first + count], work.batch) for t in (self._x, self._y)]

        def objective(batch: Any) -> torch.Tensor:
            return F.cross_entropy(flat.module(batch[0]), batch[1])

        return ClientWork(objective, list(zip(*parts, strict=True)), count, Sgd(work.lr), sample_losses=_each)

    def evaluate(self, flat: FlatModel, state: Any) -> dict[str, float]:
        return {}


def _each(model: Callable[..., torch.Tensor], batch: Any) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


class Workload(FederatedWorkload[Config]):
    """Workload of the benchmark."""

    name = "benchmark_work"
    summary = "the work on which simulators are compared"
    config = Config

    def task(self, config: Config, seed: Seed, find: Callable[[str], Path], population: int) -> Task:
        return Task(Work.loads(config.work), find("images"))


WORKLOAD = Workload()
