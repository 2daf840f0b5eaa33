"""The clock of a program: virtual in a simulation that keeps virtual time, and otherwise the machine's."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def clock_of(session: Any) -> Callable[[], float]:
    """Return the monotonic clock of a program's session, in seconds; only differences of its times have a meaning."""
    clock: Callable[[], float] = getattr(session, "clock", time.perf_counter)
    return clock
