"""How often something may be started again before it counts as broken."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RestartLimit:
    """So many restarts within any hour.

    Attributes
    ----------
    per_hour : int
    clock : callable
        Monotonic seconds.
    """

    per_hour: int
    clock: Callable[[], float]

    def allows(self, restarts: deque[float]) -> bool:
        """Note a restart among the times of earlier ones, and say whether it is within the limit."""
        now = self.clock()
        while restarts and restarts[0] < now - 3600:
            restarts.popleft()
        restarts.append(now)
        return len(restarts) <= self.per_hour
