"""The rounds or steps of a run, put together into windows where there are too many to show."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

_NEVER = (np.iinfo(np.int64).max,) * 2


@dataclass(frozen=True, slots=True)
class Periods:
    """How a run's time is cut.

    Attributes
    ----------
    unit : {"round", "step"}
        Steps where the run counts any, else rounds.
    first, last : int
        Of all that was sent; both 0 where nothing was.
    width : int
        Rounds or steps in a window.
    again : tuple of int
        The first (round, step) that a restart sent again, or later ones than there are.
    """

    unit: Literal["round", "step"] = "round"
    first: int = 0
    last: int = 0
    width: int = 1
    again: tuple[int, int] = _NEVER

    @classmethod
    def of(cls, numbers: Iterable[tuple[NDArray[np.int64], ...]], windows: int) -> Periods:
        """Look through round, step and attempt of all messages, given block by block."""
        bounds = Bounds()
        for block in numbers:
            bounds.add(*block)
        return bounds.periods(windows)

    @property
    def count(self) -> int:
        """How many windows there are."""
        return (self.last - self.first) // self.width + 1

    def wider(self, windows: int) -> Periods:
        """The same in at most ``windows`` windows, each of which is a number of these."""
        return replace(self, width=self.width * -(-self.count // windows))

    def longer(self, last: int, windows: int) -> Periods:
        """The same up to ``last``; windows become twice as wide, perhaps several times, while there are too many."""
        longer = replace(self, last=last)
        while longer.count > windows:
            longer = replace(longer, width=2 * longer.width)
        return longer

    def window(self, rounds: NDArray[np.int64], steps: NDArray[np.int64]) -> NDArray[np.int64]:
        """Numbers of the windows that messages belong to; what the channels sent of their own may belong to none."""
        place = steps if self.unit == "step" else rounds
        return (np.clip(place, self.first, self.last) - self.first) // self.width

    def resent(self, rounds: NDArray[np.int64], steps: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which messages belong to rounds and steps that a restart may have sent again."""
        if self.again == _NEVER:
            return np.zeros(len(rounds), bool)
        first_round, first_step = self.again
        found: NDArray[np.bool_] = (rounds > first_round) | ((rounds == first_round) & (steps >= first_step))
        return found

    def span(self, window: int) -> tuple[int, int]:
        """First and last round or step of a window."""
        start = self.first + window * self.width
        return start, min(start + self.width - 1, self.last)

    def label(self, window: int) -> str:
        """``7``, or ``21-30``."""
        first, last = self.span(window)
        return str(first) if first == last else f"{first}-{last}"


class Bounds:
    """The least and greatest round and step of messages, and the first that a restart sent again."""

    def __init__(self) -> None:
        self._low, self._high = [_NEVER[0]] * 2, [0, 0]
        self._again = _NEVER

    def add(self, rounds: NDArray[np.int64], steps: NDArray[np.int64], attempts: NDArray[np.int64]) -> None:
        """Look at some messages."""
        if not len(rounds):
            return
        places = (rounds, steps)
        self._low = [min(a, int(b.min())) for a, b in zip(self._low, places, strict=True)]
        self._high = [max(a, int(b.max())) for a, b in zip(self._high, places, strict=True)]
        if attempts.any():
            rounds, steps = (place[attempts > 0] for place in places)
            first = int(rounds.min())
            self._again = min(self._again, (first, int(steps[rounds == first].min())))

    def periods(self, windows: int) -> Periods:
        """In at most ``windows`` windows."""
        if self._low[0] == _NEVER[0]:
            return Periods()
        step = bool(self._high[1])
        first, last = self._low[step], self._high[step]
        return Periods("step" if step else "round", first, last, -(-(last - first + 1) // windows), self._again)
