"""Names of runs: sortable by age, short enough to type."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable

_LETTERS = "0123456789abcdefghjkmnpqrstvwxyz"  # no i, l, o, u: they look like others, or make words
_lock = threading.Lock()
_last = 0


def new_run_id(clock: Callable[[], float] = time.time) -> str:
    """A new id such as ``260412-143012-057k3``: UTC date, time, milliseconds and two random letters.

    Ids made by one process are distinct and sort in the order made; ids of different processes sort by their clocks,
    and the run store refuses the rare pair that is equal.

    Parameters
    ----------
    clock : callable
        Seconds since 1970.
    """
    global _last
    with _lock:
        _last = max(int(clock() * 1000), _last + 1)
        moment = _last
    seconds, milliseconds = divmod(moment, 1000)
    tail = "".join(secrets.choice(_LETTERS) for _ in range(2))
    return f"{time.strftime('%y%m%d-%H%M%S', time.gmtime(seconds))}-{milliseconds:03d}{tail}"
