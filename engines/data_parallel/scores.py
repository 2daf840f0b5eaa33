"""Compares the score of an evaluation with the best so far, for the best state and for early stopping."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ...core.message import Array
from .task import Score


@dataclass
class ScoreTracker:
    """The best score so far; all ranks hold the same.

    Parameters
    ----------
    score : Score
    patience : int
        Evaluations without a better score after which training stops; 0: never.

    Attributes
    ----------
    best : float
        Its value, NaN before the first evaluation.
    best_step : int
        Steps that were done then.
    since : int
        Evaluations since then.
    """

    score: Score
    patience: int = 0
    best: float = math.nan
    best_step: int = -1
    since: int = 0

    @property
    def stops(self) -> bool:
        """Whether training ends here."""
        return 0 < self.patience <= self.since

    def add(self, value: float, step: int) -> bool:
        """Add the score of an evaluation after ``step`` steps; return whether it is the best so far."""
        better = value > self.best if self.score.higher_is_better else value < self.best
        if better or (math.isnan(self.best) and not math.isnan(value)):
            self.best, self.best_step, self.since = value, step, 0
            return True
        self.since += 1
        return False

    def array(self) -> Array:
        """Return the state: float64 (3,)."""
        return np.array([self.best, self.best_step, self.since], np.float64)

    def load(self, array: Array) -> None:
        """Restore what :meth:`array` returned."""
        best, step, since = (float(value) for value in array)
        self.best, self.best_step, self.since = best, int(step), int(since)
