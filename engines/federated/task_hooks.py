"""What a task may tell of its run beside the scores of every round; a task without it is a whole task all the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ...models.flat_params import FlatModel
from .task import Task
from .tree import Part


@runtime_checkable
class Observed(Protocol):
    """A task that tells more."""

    @property
    def reports(self) -> Sequence[str]:
        """Names of the figures that clients send with their updates (``Work.means``)."""

    def figures(self, entry: Mapping[str, Any]) -> dict[str, float]:
        """What the server adds to a round's ``entry``, which holds its ``round``, ``cohort`` and ``train_loss``."""

    def by_client(self, flat: FlatModel, state: Part) -> NDArray[np.float64]:
        """(clients,), accuracy of a state on each client's own part of the test set, NaN where that is empty.

        ``flat`` is overwritten.
        """

    def describe(self, folder: Path) -> None:
        """Write into the run's ``folder`` what its data are: once, before the first round."""


@runtime_checkable
class Counted(Protocol):
    """A task that knows how much its clients do without making their batches."""

    def counts(self, client: int) -> tuple[int, int]:
        """Samples and steps of a client, the same in every round: what ``work`` would hold."""


@runtime_checkable
class Refining(Protocol):
    """A task whose server trains too."""

    def refine(self, flat: FlatModel, state: Part, round_index: int) -> Part:
        """The state to go on with after round ``round_index``, from run seed, state and round alone.

        ``flat`` is overwritten, ``state`` is not.
        """


def refined(task: Task, flat: FlatModel, state: Part, round_index: int) -> Part:
    """The state as the task would have it."""
    refine = getattr(task, "refine", None)  # the protocol itself is slow to ask
    return refine(flat, state, round_index) if refine else state
