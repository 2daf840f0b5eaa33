"""Per-peer limit on failed authentication attempts."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable


class RateLimit:
    """Limits failures per peer over a sliding window.

    Parameters
    ----------
    max_failures : int
        Failures after which a peer is blocked.
    seconds : float
        Length of the window.
    clock : callable
        Returns monotonic seconds; replaceable in tests.
    """

    def __init__(
        self, max_failures: int = 10, seconds: float = 60.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_failures = max_failures
        self._seconds = seconds
        self._clock = clock
        self._failures: OrderedDict[str, list[float]] = OrderedDict()

    def blocked(self, peer: str) -> float:
        """Return the seconds until ``peer`` is no longer blocked; 0 if it is not blocked."""
        recent = self._recent(peer)
        return recent[-self._max_failures] + self._seconds - self._clock() if len(recent) >= self._max_failures else 0.0

    def failed(self, peer: str) -> None:
        """Count a failure of ``peer``; beyond 10,000 peers, the one whose last failure is oldest is forgotten."""
        self._failures[peer] = [*self._recent(peer), self._clock()][-self._max_failures :]
        self._failures.move_to_end(peer)
        if len(self._failures) > 10_000:
            self._failures.popitem(last=False)

    def _recent(self, peer: str) -> list[float]:
        since = self._clock() - self._seconds
        return [t for t in self._failures.get(peer, []) if t > since]
