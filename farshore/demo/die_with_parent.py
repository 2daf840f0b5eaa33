"""``python -m farshore.demo.die_with_parent PID …``: run ``farshore …`` and stop when the parent process PID ends.

No process outlives the demo, even if the demo is killed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_SET_PARENT_DEATH_SIGNAL = 1


def main() -> None:
    """Request SIGTERM at the parent's death, then run the command line."""
    parent, *arguments = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != int(parent):  # the parent ended before prctl
        sys.exit(1)
    from ..cli.main import execute

    sys.exit(execute(arguments))


if __name__ == "__main__":
    main()
