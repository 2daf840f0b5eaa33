"""Run ids: short, and sorted by the time of creation."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # without i, l, o, u, which are misread or form words
_lock = threading.Lock()
_last = 0


def new_run_id(clock: Callable[[], float] = time.time) -> str:
    """Create an id such as ``260412-143012-057k3``: UTC date, time, milliseconds and two random letters.

    Ids of one process are unique and sort in the order of creation. Ids of different processes sort by their clocks;
    the run store rejects the rare duplicate.

    Parameters
    ----------
    clock : callable
        Returns seconds since 1970.
    """
    global _last
    with _lock:
        _last = max(int(clock() * 1000), _last + 1)
        timestamp = _last
    seconds, milliseconds = divmod(timestamp, 1000)
    suffix = "".join(secrets.choice(_ALPHABET) for _ in range(2))
    return f"{time.strftime('%y%m%d-%H%M%S', time.gmtime(seconds))}-{milliseconds:03d}{suffix}"
