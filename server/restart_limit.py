"""Limit on restarts within a sliding hour."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RestartLimit:
    """A maximum number of restarts within any hour.

    Attributes
    ----------
    per_hour : int
    clock : callable
        Returns monotonic seconds.
    """

    per_hour: int
    clock: Callable[[], float]

    def allows(self, restarts: deque[float]) -> bool:
        """Record a restart in ``restarts`` (times of earlier ones); returns whether it is within the limit."""
        now = self.clock()
        while restarts and restarts[0] < now - 3600:
            restarts.popleft()
        restarts.append(now)
        return len(restarts) <= self.per_hour
