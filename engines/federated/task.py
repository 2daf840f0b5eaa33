"""What a federated run learns: a model, a method, every client's work, and how good a state is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ...models.flat_params import FlatModel
from .methods import FederatedMethod, Work
from .tree import Part


class Task(Protocol):
    """One learning problem; both programs make it from the run's configuration, seed and data."""

    @property
    def notes(self) -> Sequence[str]:
        """What whoever reads the run's log should know of the data."""

    def model(self) -> FlatModel:
        """A fresh model with the run's initial weights, the same in every process."""

    def method(self, flat: FlatModel) -> FederatedMethod:
        """The federated method, for models like this."""

    def work(self, flat: FlatModel, client: int, round_index: int) -> Work:
        """What a client does in round ``round_index`` (from 1), on the resident model ``flat``."""

    def evaluate(self, flat: FlatModel, state: Part) -> dict[str, float]:
        """Scores of a state on the test set; ``flat`` is overwritten."""
