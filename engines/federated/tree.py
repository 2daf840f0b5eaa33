"""Sums over a cohort that are bit-identical for any order of arrival and any distribution over workers.

Cohort positions are the leaves of a binary tree. An inner node is the sum of its left and its right child, and nothing
else is ever added, so a worker that sums positions 8 to 15 returns the same node that a server would compute from eight
replies. Positions without a reply are skipped: the sibling takes the parent's place unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

#: Named arrays. A sum owns the arrays that are added to it, and adds to them in place.
NamedArrays: TypeAlias = dict[str, NDArray[Any]]


class TreeSum:
    """A sum over positions ``0 … size - 1``.

    Holds at most one summand per level of the tree if positions arrive in order.

    Parameters
    ----------
    size : int
        Number of positions.
    first : int
        Position of the first leaf; a worker sums the block ``first … first + size - 1`` of a cohort.
    release : callable, optional
        Called with each summand that was added to another and is no longer needed.

    Raises
    ------
    ValueError
        The positions are not a node of the cohort's tree.
    """

    def __init__(self, size: int, first: int = 0, release: Callable[[NamedArrays], None] | None = None) -> None:
        self.size, self.first, self._release = size, first, release
        self._levels = (size - 1).bit_length() if size > 1 else 0
        if first % (1 << self._levels):
            raise ValueError(f"a block of {size} positions cannot begin at position {first}")
        #: (level, index) -> sum of a node whose sibling is not known yet; None if all of its positions were skipped.
        self._waiting: dict[tuple[int, int], NamedArrays | None] = {}
        self._settled = bytearray(size)
        self._root: NamedArrays | None = None
        self.complete = size == 0
        for index in range(size, 1 << self._levels):
            self._settle(0, index, None)

    def add(self, position: int, part: NamedArrays, level: int = 0) -> None:
        """Add the sum of the positions ``position … position + 2**level - 1``; takes ownership of ``part``.

        Raises
        ------
        ValueError
            The positions are not a node of the tree, or some were added or skipped before.
        """
        self._settle(level, self._claim(position, level), part)

    def skip(self, position: int, level: int = 0) -> None:
        """Mark positions as absent; raises the same errors as :meth:`add`."""
        self._settle(level, self._claim(position, level), None)

    def total(self) -> NamedArrays | None:
        """Return the sum; None if every position was skipped.

        Raises
        ------
        ValueError
            Some positions were neither added nor skipped.
        """
        if not self.complete:
            raise ValueError(f"some of {self.size} positions were neither added nor skipped")
        return self._root

    def _claim(self, position: int, level: int) -> int:
        """Mark a node's leaves as settled and return its index on its level; each leaf is settled once."""
        offset, width = position - self.first, 1 << level
        if offset % width or not 0 <= offset < self.size or level > self._levels:
            raise ValueError(f"positions {position} … {position + width - 1} are not a node of this tree")
        if any(self._settled[offset : offset + width]):
            raise ValueError(f"positions {position} … {position + width - 1} were (partly) added or skipped before")
        leaves = min(width, self.size - offset)
        self._settled[offset : offset + leaves] = b"\1" * leaves
        return offset >> level

    def _settle(self, level: int, index: int, part: NamedArrays | None) -> None:
        while level < self._levels:
            sibling = (level, index ^ 1)
            if sibling not in self._waiting:
                self._waiting[level, index] = part
                return
            other = self._waiting.pop(sibling)
            part = self._combine(other, part) if index % 2 else self._combine(part, other)
            level, index = level + 1, index >> 1
        self._root, self.complete = part, True

    def _combine(self, left: NamedArrays | None, right: NamedArrays | None) -> NamedArrays | None:
        both = add_siblings(left, right)
        if self._release is not None and left is not None and right is not None:
            self._release(right)
        return both


def add_siblings(left: NamedArrays | None, right: NamedArrays | None) -> NamedArrays | None:
    """Add the right sibling to the left one in place; None stands for an absent node."""
    if left is None or right is None:
        return right if left is None else left
    if left.keys() != right.keys():
        raise ValueError(f"cannot add arrays {sorted(right)} to {sorted(left)}")
    for name, array in left.items():
        np.add(array, right[name], out=array)
    return left


def blocks(size: int, workers: int, least: int = 1) -> list[tuple[int, int]]:
    """Divide positions ``0 … size - 1`` into blocks ``(first, count)`` that are nodes of the tree.

    All blocks have the same power of two of positions, except that the last may be smaller. There are about four per
    worker, so that one slow block does not delay the round, but no block is smaller than ``least``, a power of two.
    """
    target = max(least, size // (4 * workers))
    count = 1 << (target.bit_length() - 1)
    return [(first, min(count, size - first)) for first in range(0, size, count)]
