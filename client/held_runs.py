"""The run directories on a node: which are known to be finished, and which are deleted to make room.

Only the server knows that a run has finished and is never resumed. It says so when the run ends, or at the node's next
connection; the node then leaves the empty file ``finished`` in the run's directory.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import TypeAlias

_log = logging.getLogger(__name__)

#: Number of unfinished runs, newest first, that a node asks its server about.
MAX_HELD = 5_000
#: Space to keep free for a run that starts: this part of the disk, but at most so many bytes.
_RESERVED_PART, _RESERVED_BYTES = 0.05, 1 << 30
_MARKER = "finished"

#: ``(total, free)`` bytes of the disk with a folder.
Space: TypeAlias = Callable[[Path], tuple[int, int]]


def disk_space(folder: Path) -> tuple[int, int]:
    """Return the total and the free bytes of the disk with ``folder``."""
    usage = shutil.disk_usage(folder)
    return usage.total, usage.free


def held(runs: Path) -> list[str]:
    """Return the ids of the runs in ``runs`` that are not known to be finished, at most :data:`MAX_HELD`."""
    return [name for name in _names(runs) if not (runs / name / _MARKER).exists()][-MAX_HELD:]


def mark_finished(runs: Path, ids: Iterable[str]) -> None:
    """Record that runs have finished; ids without a directory in ``runs`` are ignored."""
    present = set(_names(runs))
    for name in present.intersection(ids):
        try:
            (runs / name / _MARKER).touch()
        except OSError as error:  # its checkpoints are kept longer than necessary
            _log.warning("cannot mark the run %s as finished: %s", name, error)


def prune(runs: Path, keep: int, running: Collection[str], space: Space = disk_space) -> list[str]:
    """Delete directories of runs, except ``running``, oldest first; returns the unfinished runs that were deleted.

    Finished runs are deleted so that ``keep`` of them and the running ones remain. Unfinished ones hold the only copy
    of this node's part of their progress: they are deleted only while the disk is short of space, after all finished
    ones. Ids begin with the time, so that their order is that of the runs' creation.
    """
    idle = [name for name in _names(runs) if name not in running]
    finished = [name for name in idle if (runs / name / _MARKER).exists()]
    surplus = max(0, len(finished) + len(running) - keep)
    for name in finished[:surplus]:
        shutil.rmtree(runs / name, ignore_errors=True)
    sacrificed = []
    for name in (*finished[surplus:], *(name for name in idle if name not in finished)):
        if not _is_short(*space(runs)):
            break
        shutil.rmtree(runs / name, ignore_errors=True)
        if name not in finished:
            sacrificed.append(name)
            _log.warning("the disk is almost full: deleted the checkpoints of the unfinished run %s", name)
    return sacrificed


def _is_short(total: int, free: int) -> bool:
    return free < min(total * _RESERVED_PART, _RESERVED_BYTES)


def _names(runs: Path) -> list[str]:
    return sorted(path.name for path in runs.iterdir() if path.is_dir()) if runs.is_dir() else []
