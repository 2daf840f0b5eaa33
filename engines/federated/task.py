"""The task of a federated run: a model, a method, each client's local work, and the evaluation of a state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ...models.flat_params import FlatModel
from .methods import FederatedMethod, Work
from .tree import NamedArrays


class Task(Protocol):
    """One learning problem; server and node programs build it from the run's configuration, seed and data."""

    @property
    def notes(self) -> Sequence[str]:
        """Remarks about the data for the run's log."""

    def model(self) -> FlatModel:
        """Create a model with the run's initial weights, the same in every process."""

    def method(self, flat: FlatModel) -> FederatedMethod:
        """Create the federated method for models of this layout."""

    def work(self, flat: FlatModel, client: int, round_index: int) -> Work:
        """Prepare a client's work in round ``round_index`` (from 1) on the resident model ``flat``."""

    def evaluate(self, flat: FlatModel, state: NamedArrays) -> dict[str, float]:
        """Score a state on the test set; ``flat`` is overwritten."""
