"""A free list of shared-memory arrays for the sums that workers return."""

from __future__ import annotations

from pathlib import Path

from ...engines.federated.tree import NamedArrays
from .shared_arrays import SharedArrays, SharedPart


class SharedSums:
    """Lends shared-memory arrays, and creates new ones if all are in use.

    At most one set of arrays per worker and one per level of the reduction tree are in use at a time.

    Parameters
    ----------
    example : dict of arrays
        Names, shapes and dtypes of the arrays of a sum.
    folder : Path, optional
        See :func:`.shared_block.allocate`.
    """

    def __init__(self, example: NamedArrays, folder: Path | None = None) -> None:
        self._example, self._folder = example, folder
        self._all: list[SharedArrays] = []
        self._free: list[SharedArrays] = []

    def acquire(self) -> SharedArrays:
        """Return arrays for a worker to write to."""
        if self._free:
            return self._free.pop()
        created = SharedArrays.like(self._example, self._folder)
        self._all.append(created)
        return created

    def release(self, part: NamedArrays) -> None:
        """Return arrays to the free list; their content may be overwritten. A sum of other memory is ignored."""
        if isinstance(part, SharedPart):
            self._free.append(part.block)

    def close(self) -> None:
        """Free all shared memory."""
        for arrays in self._all:
            arrays.close()
        self._all, self._free = [], []
