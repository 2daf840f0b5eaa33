"""Shared memory for the sums that workers return: it stays where it was written until it is in another sum."""

from __future__ import annotations

from ...engines.federated.tree import Part
from .shared_arrays import SharedArrays


class SharedSums:
    """As many places as were ever in use at once: one for each worker, and one for each level of the tree.

    Parameters
    ----------
    example : dict of arrays
        A sum has arrays like these.
    """

    def __init__(self, example: Part) -> None:
        self._example = example
        self._all: dict[int, SharedArrays] = {}  # by the identity of their arrays, as a tree knows them
        self._free: list[SharedArrays] = []

    def take(self) -> SharedArrays:
        """A place for a worker to write to."""
        if self._free:
            return self._free.pop()
        made = SharedArrays.like(self._example)
        self._all[id(made.arrays)] = made
        return made

    def give(self, part: Part) -> None:
        """A place's arrays are not looked at any more."""
        self._free.append(self._all[id(part)])

    def close(self) -> None:
        """Remove them all."""
        for arrays in self._all.values():
            arrays.close()
        self._all, self._free = {}, []
