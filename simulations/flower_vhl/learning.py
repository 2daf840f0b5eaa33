"""What both halves of the app know: the learning problem, made from a few words, and its arrays as Flower's records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord

from ...algorithms.vhl.config import VHL
from ...algorithms.vhl.task import VHLTask
from ...algorithms.vhl.workload import WORKLOAD
from ...core.errors import DataError
from ...core.seeds import Seed
from ...engines.federated.methods import FederatedMethod
from ...engines.federated.tree import Part
from ...engines.federated.workload import use_threads
from ...models.flat_params import FlatModel


@dataclass(frozen=True, slots=True)
class Learning:
    """The learning problem of one process.

    Attributes
    ----------
    task : VHLTask
    flat : FlatModel
        The resident model.
    method : Method
    digest : str
        SHA-256 of the virtual data; empty without any.
    """

    task: VHLTask
    flat: FlatModel
    method: FederatedMethod
    digest: str


def settings_of(run_config: Mapping[str, Any]) -> VHL:
    """The method's configuration from the keys of the app's that begin with ``vhl.``."""
    nested: dict[str, Any] = {}
    for key, value in run_config.items():
        first, *path = key.split(".")
        if first == "vhl":
            place = nested
            for name in path[:-1]:
                place = place.setdefault(name, {})
            place[path[-1]] = value
    return VHL.model_validate(nested)


@lru_cache(maxsize=1)
def learning(settings: str, seed: int, clients: int, data: str) -> Learning:
    """The problem that JSON settings and a seed stand for; a process keeps the last one."""
    config = VHL.model_validate_json(settings)
    use_threads(config.threads)
    task = WORKLOAD.task(config, Seed(seed), _finder(data), clients)
    assert isinstance(task, VHLTask)
    flat = task.model()
    return Learning(task, flat, task.method(flat), task.virtual_data.digest if task.recipe is not None else "")


def record(arrays: Mapping[str, Any]) -> ArrayRecord:
    """Named arrays as Flower's."""
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()})


def part(*records: ArrayRecord) -> Part:
    """The arrays of some records together."""
    return {name: array.numpy() for record in records for name, array in record.items()}


def _finder(data: str) -> Callable[[str], Path]:
    def find(name: str) -> Path:
        if not data:
            raise DataError(
                f"the app was given no data set '{name}'", hint="give its path: --run-config 'data=\"PATH\"'"
            )
        return Path(data)

    return find
