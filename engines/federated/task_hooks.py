"""Optional extensions of a task: more metrics for reports, work sizes for estimates, server-side refinement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ...models.flat_params import FlatModel
from .task import Task
from .tree import NamedArrays


@runtime_checkable
class ReportingTask(Protocol):
    """A task that reports metrics besides the scores of each round."""

    @property
    def reports(self) -> Sequence[str]:
        """Names of the metrics that clients report with their updates (``Work.means``)."""

    def metrics(self, entry: Mapping[str, Any]) -> dict[str, float]:
        """Compute metrics to add to a round's ``entry``, which has ``round``, ``cohort`` and ``train_loss``."""

    def client_accuracy(self, flat: FlatModel, state: NamedArrays) -> NDArray[np.float64]:
        """(clients,), accuracy of a state on each client's own part of the test set; NaN where that part is empty.

        ``flat`` is overwritten.
        """

    def describe(self, folder: Path) -> None:
        """Write a description of the data into the run's ``folder``; called once, before the first round."""


@runtime_checkable
class SizedTask(Protocol):
    """A task that knows the size of its clients' work without building their batches."""

    def work_size(self, client: int) -> tuple[int, int]:
        """Samples and steps of a client's ``work``, the same in every round."""


@runtime_checkable
class RefiningTask(Protocol):
    """A task whose server trains on the aggregated state."""

    def refine(self, flat: FlatModel, state: NamedArrays, round_index: int) -> NamedArrays:
        """Return the state to continue from after round ``round_index``.

        It depends only on the run's seed, ``state`` and the round. ``flat`` is overwritten, ``state`` is not.
        """


def refine_state(task: Task, flat: FlatModel, state: NamedArrays, round_index: int) -> NamedArrays:
    """Refine the state if the task is a :class:`RefiningTask`, otherwise return it unchanged."""
    refine = getattr(task, "refine", None)  # isinstance() with a runtime protocol is slow
    return refine(flat, state, round_index) if refine else state
