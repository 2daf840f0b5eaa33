"""What a task may tell of its run beside the scores of every round; a task without it is a whole task all the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from .flat import FlatModel
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
