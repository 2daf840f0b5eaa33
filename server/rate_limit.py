"""Slows down whoever guesses join tokens."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable


class RateLimit:
    """Counts failures per peer over a sliding minute.

    Parameters
    ----------
    most : int
        Failures a peer may have per ``seconds``.
    seconds : float
    clock : callable
        Monotonic seconds; for tests.
    """

    def __init__(self, most: int = 10, seconds: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._seconds = seconds
        self._clock = clock
        self._failures: OrderedDict[str, list[float]] = OrderedDict()

    def blocked(self, peer: str) -> float:
        """Seconds that ``peer`` has to wait; 0 = none."""
        recent = self._recent(peer)
        return recent[-self._most] + self._seconds - self._clock() if len(recent) >= self._most else 0.0

    def failed(self, peer: str) -> None:
        """Count a failure; the table forgets the longest silent of more than 10,000 peers."""
        self._failures[peer] = [*self._recent(peer), self._clock()][-self._most :]
        self._failures.move_to_end(peer)
        if len(self._failures) > 10_000:
            self._failures.popitem(last=False)

    def _recent(self, peer: str) -> list[float]:
        since = self._clock() - self._seconds
        return [t for t in self._failures.get(peer, []) if t > since]
