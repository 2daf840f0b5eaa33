"""``python -m farshore.demo.die_with_parent PID …``: the command ``farshore …`` that stops when process PID is gone.

So nothing outlives a demonstration, not even one that was killed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_SET_PARENT_DEATH_SIGNAL = 1


def main() -> None:
    """Tie this process's life to its parent's, then run the command line."""
    parent, *arguments = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != int(parent):  # gone before we asked
        sys.exit(1)
    from ..cli.main import execute

    sys.exit(execute(arguments))


if __name__ == "__main__":
    main()
