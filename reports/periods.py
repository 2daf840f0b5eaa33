"""Windows of consecutive rounds or steps, which keep the tables and charts of long runs small."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

_NEVER = (np.iinfo(np.int64).max,) * 2


@dataclass(frozen=True, slots=True)
class Periods:
    """A partition of a run's rounds or steps into windows of equal width.

    Attributes
    ----------
    unit : {"round", "step"}
        Steps if the run's messages have any, else rounds.
    first, last : int
        The first and last round or step of the run's messages; both 0 if it has none.
    width : int
        Rounds or steps per window.
    resent_from : tuple of int
        The first (round, step) that was sent again after a restart; a maximal value if none was.
    """

    unit: Literal["round", "step"] = "round"
    first: int = 0
    last: int = 0
    width: int = 1
    resent_from: tuple[int, int] = _NEVER

    @classmethod
    def from_positions(cls, positions: Iterable[tuple[NDArray[np.int64], ...]], windows: int) -> Periods:
        """Build from round, step and attempt of all messages, given block by block; at most ``windows`` windows."""
        bounds = Bounds()
        for block in positions:
            bounds.add(*block)
        return bounds.periods(windows)

    @property
    def count(self) -> int:
        """Number of windows."""
        return (self.last - self.first) // self.width + 1

    def coarsened(self, windows: int) -> Periods:
        """Merge whole windows until there are at most ``windows``."""
        return replace(self, width=self.width * -(-self.count // windows))

    def extended(self, last: int, windows: int) -> Periods:
        """Extend to ``last``; the width doubles until there are at most ``windows`` windows."""
        extended = replace(self, last=last)
        while extended.count > windows:
            extended = replace(extended, width=2 * extended.width)
        return extended

    def window(self, rounds: NDArray[np.int64], steps: NDArray[np.int64]) -> NDArray[np.int64]:
        """Index of the window of each message; the channels' own frames, which may lie outside, are clipped."""
        numbers = steps if self.unit == "step" else rounds
        return (np.clip(numbers, self.first, self.last) - self.first) // self.width

    def may_be_resent(self, rounds: NDArray[np.int64], steps: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each message belongs to a round or step that may have been sent again after a restart."""
        if self.resent_from == _NEVER:
            return np.zeros(len(rounds), bool)
        first_round, first_step = self.resent_from
        found: NDArray[np.bool_] = (rounds > first_round) | ((rounds == first_round) & (steps >= first_step))
        return found

    def span(self, window: int) -> tuple[int, int]:
        """First and last round or step of a window."""
        start = self.first + window * self.width
        return start, min(start + self.width - 1, self.last)

    def label(self, window: int) -> str:
        """Label of a window: ``7``, or ``21-30``."""
        first, last = self.span(window)
        return str(first) if first == last else f"{first}-{last}"


class Bounds:
    """The range of rounds and steps of messages, and the first that was sent again after a restart."""

    def __init__(self) -> None:
        self._low, self._high = [_NEVER[0]] * 2, [0, 0]
        self._resent_from = _NEVER

    def add(self, rounds: NDArray[np.int64], steps: NDArray[np.int64], attempts: NDArray[np.int64]) -> None:
        """Include messages, given by their round, step and attempt."""
        if not len(rounds):
            return
        numbers = (rounds, steps)
        self._low = [min(a, int(b.min())) for a, b in zip(self._low, numbers, strict=True)]
        self._high = [max(a, int(b.max())) for a, b in zip(self._high, numbers, strict=True)]
        if attempts.any():
            rounds, steps = (column[attempts > 0] for column in numbers)
            first = int(rounds.min())
            self._resent_from = min(self._resent_from, (first, int(steps[rounds == first].min())))

    def periods(self, windows: int) -> Periods:
        """Return the periods, in at most ``windows`` windows."""
        if self._low[0] == _NEVER[0]:
            return Periods()
        step = bool(self._high[1])
        first, last = self._low[step], self._high[step]
        return Periods("step" if step else "round", first, last, -(-(last - first + 1) // windows), self._resent_from)
