"""A budget per second with a burst, which tells how long to wait."""

from __future__ import annotations

import time
from collections.abc import Callable


class TokenBucket:
    """Refills at a constant rate up to a burst; spending more than is left makes a debt.

    Parameters
    ----------
    rate : float
        Units per second.
    burst : float
        Most units that can be spent at once without a wait.
    clock : callable
        Returns monotonic seconds; replaceable in tests.
    """

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._left, self._at = burst, clock()

    @property
    def recovered(self) -> bool:
        """Whether a quarter of the burst was left after the last spending."""
        return self._left >= self._burst / 4

    def spend(self, amount: float) -> float:
        """Spend units; returns the seconds until the debt is paid, 0 if there is none."""
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._at) * self._rate) - amount
        self._at = now
        return max(0.0, -self._left / self._rate)
