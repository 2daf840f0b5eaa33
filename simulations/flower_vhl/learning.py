"""The learning problem that both halves of the app build from the same settings, and conversion to Flower's records."""

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
from ...engines.federated.tree import NamedArrays
from ...engines.federated.workload import use_threads
from ...models.flat_params import FlatModel


@dataclass(frozen=True, slots=True)
class LearningProblem:
    """Task, model and method of one process.

    Attributes
    ----------
    task : VHLTask
    flat : FlatModel
        The process's only model.
    method : FederatedMethod
    digest : str
        SHA-256 of the virtual data; empty if there are none.
    """

    task: VHLTask
    flat: FlatModel
    method: FederatedMethod
    digest: str


def settings_of(run_config: Mapping[str, Any]) -> VHL:
    """Return the method's configuration, given by the keys ``vhl.…`` of the app's configuration."""
    nested: dict[str, Any] = {}
    for key, value in run_config.items():
        first, *path = key.split(".")
        if first == "vhl":
            target = nested
            for name in path[:-1]:
                target = target.setdefault(name, {})
            target[path[-1]] = value
    return VHL.model_validate(nested)


@lru_cache(maxsize=1)
def learning_problem(settings: str, seed: int, clients: int, data: str) -> LearningProblem:
    """Build the learning problem of JSON settings and a seed; the last one is cached."""
    config = VHL.model_validate_json(settings)
    use_threads(config.threads)
    task = WORKLOAD.task(config, Seed(seed), _finder(data), clients)
    assert isinstance(task, VHLTask)
    flat = task.model()
    return LearningProblem(task, flat, task.method(flat), task.virtual_data.digest if task.recipe is not None else "")


def record(arrays: Mapping[str, Any]) -> ArrayRecord:
    """Convert named arrays to a Flower record."""
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()})


def merge_records(*records: ArrayRecord) -> NamedArrays:
    """Return the arrays of several Flower records in one dict."""
    return {name: array.numpy() for record in records for name, array in record.items()}


def _finder(data: str) -> Callable[[str], Path]:
    def find(name: str) -> Path:
        if not data:
            raise DataError(
                f"the app has no path of the data set '{name}'", hint="set it: --run-config 'data=\"PATH\"'"
            )
        return Path(data)

    return find
