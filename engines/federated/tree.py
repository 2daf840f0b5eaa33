"""Sums over a cohort with the same bits whoever adds up which part, in whatever order the parts arrive.

Cohort positions are the leaves of a binary tree. An inner node is its left child plus its right one, and nothing else
is ever added, so a worker that sums positions 8 to 15 returns the very node that a server would have made from eight
replies. A position that never comes is left out: its sibling moves up unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

#: Named arrays; the ones of a sum belong to it and are added to in place.
Part: TypeAlias = dict[str, NDArray[Any]]


class TreeSum:
    """A sum over positions ``0 … size - 1``.

    Holds at most one array per level of the tree when positions come in order.

    Parameters
    ----------
    size : int
        Positions of the cohort.
    first : int
        Position of the first leaf that is added here; a worker sums the block ``first … first + size - 1``.
    spent : callable, optional
        Gets each part that was added to another and is needed no more.
    """

    def __init__(self, size: int, first: int = 0, spent: Callable[[Part], None] | None = None) -> None:
        self.size, self.first, self._spent = size, first, spent
        self._levels = (size - 1).bit_length() if size > 1 else 0
        if first % (1 << self._levels):
            raise ValueError(f"a block of {size} positions cannot begin at {first}")
        #: (level, index) -> what is known of that node; None where nothing of it will come.
        self._waiting: dict[tuple[int, int], Part | None] = {}
        self._settled = bytearray(size)
        self._root: Part | None = None
        self.complete = size == 0
        for index in range(size, 1 << self._levels):
            self._settle(0, index, None)

    def add(self, position: int, part: Part, level: int = 0) -> None:
        """Add the sum of the positions ``position … position + 2**level - 1``; ``part`` is taken over.

        Raises
        ------
        ValueError
            They are not a node of the tree, or not (all) of it.
        """
        self._settle(level, self._take(position, level), part)

    def skip(self, position: int, level: int = 0) -> None:
        """Say that those positions never come; same errors as :meth:`add`."""
        self._settle(level, self._take(position, level), None)

    def total(self) -> Part | None:
        """The sum; None if every position was skipped.

        Raises
        ------
        ValueError
            Some positions are still missing.
        """
        if not self.complete:
            raise ValueError(f"of {self.size} positions some have neither come nor been skipped")
        return self._root

    def _take(self, position: int, level: int) -> int:
        """Index of a node on its level; each leaf is settled once."""
        offset, width = position - self.first, 1 << level
        if offset % width or not 0 <= offset < self.size or level > self._levels:
            raise ValueError(f"positions {position} … {position + width - 1} are no node of this tree")
        if any(self._settled[offset : offset + width]):
            raise ValueError(f"positions {position} … {position + width - 1} came before, all or some")
        leaves = min(width, self.size - offset)
        self._settled[offset : offset + leaves] = b"\1" * leaves
        return offset >> level

    def _settle(self, level: int, index: int, part: Part | None) -> None:
        while level < self._levels:
            sibling = (level, index ^ 1)
            if sibling not in self._waiting:
                self._waiting[level, index] = part
                return
            other = self._waiting.pop(sibling)
            part = self._joined(other, part) if index % 2 else self._joined(part, other)
            level, index = level + 1, index >> 1
        self._root, self.complete = part, True

    def _joined(self, left: Part | None, right: Part | None) -> Part | None:
        both = joined(left, right)
        if self._spent is not None and left is not None and right is not None:
            self._spent(right)
        return both


def joined(left: Part | None, right: Part | None) -> Part | None:
    """The sum of two siblings, in the left one's arrays; None where nothing came."""
    if left is None or right is None:
        return right if left is None else left
    if left.keys() != right.keys():
        raise ValueError(f"cannot add {sorted(right)} to {sorted(left)}")
    for name, array in left.items():
        np.add(array, right[name], out=array)
    return left


def blocks(size: int, workers: int, least: int = 1) -> list[tuple[int, int]]:
    """Cut ``0 … size - 1`` into blocks that are nodes of the tree: ``(first, count)``, a few for each worker.

    Every block has the same power of two of positions, the last perhaps fewer; about four a worker, so that one slow
    block does not hold up the round, but no fewer positions than ``least``, a power of two.
    """
    wanted = max(least, size // (4 * workers))
    count = 1 << (wanted.bit_length() - 1)
    return [(first, min(count, size - first)) for first in range(0, size, count)]
