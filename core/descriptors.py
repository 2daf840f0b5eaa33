"""File descriptors of this process: their limit, how many are in use, and what a server can carry with them."""

from __future__ import annotations

import os
from dataclasses import dataclass

#: Descriptors of a server per node of a run (control stream, data connection, socket to the run process) and per run
#: (process, its messages and its output); those that it needs by itself, and those that are kept for operators.
PER_NODE, PER_RUN, OWN, RESERVE = 3, 4, 64, 48
#: More than this is of no use, and slows down programs that close every possible descriptor.
_MOST = 1 << 16

#: What an operator can do.
LIMIT_HINT = "raise the limit on open files of the server (ulimit -n), then start it again"


@dataclass(frozen=True, slots=True)
class DescriptorLimit:
    """The limits on descriptors of this process.

    Attributes
    ----------
    soft, hard : int
        In force, and the value up to which the process may raise it.
    """

    soft: int
    hard: int

    @classmethod
    def current(cls) -> DescriptorLimit:
        """Read the limits."""
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        unlimited = resource.RLIM_INFINITY
        return cls(_MOST if soft == unlimited else soft, _MOST if hard == unlimited else hard)

    @property
    def possible(self) -> int:
        """The limit that :func:`raise_limit` sets."""
        return max(self.soft, min(self.hard, _MOST))

    @property
    def nodes(self) -> int:
        """Nodes that one run on a server can have, after :func:`raise_limit`."""
        return max(0, (self.possible - OWN - RESERVE - PER_RUN) // PER_NODE)


def raise_limit() -> DescriptorLimit:
    """Raise the soft limit to the hard one, for this process and its children; returns the limits then."""
    import resource

    limit = DescriptorLimit.current()
    if limit.possible > limit.soft:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit.possible, hard))
        except (OSError, ValueError):  # macOS has a lower limit than its hard one says
            return limit
    return DescriptorLimit.current()


def open_descriptors() -> list[int]:
    """List the open descriptors of this process, without needing a free one."""
    try:
        return [int(name) for name in os.listdir("/dev/fd")]  # noqa: PTH208 - numbers, not paths
    except OSError:  # none is free to read the folder
        return [fd for fd in range(DescriptorLimit.current().soft) if _is_open(fd)]


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True
