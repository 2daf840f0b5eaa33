"""A free list of model-sized arrays, which avoids the cost of fresh memory.

Page faults of newly allocated memory cost more than the copy or multiplication that fills it.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from .tree import NamedArrays


class ArrayPool:
    """Free arrays by shape and dtype; it grows to the largest number in use at once, one per level of a tree sum.

    Only arrays that the pool handed out are taken back; others are ignored, since they have another owner.
    """

    def __init__(self) -> None:
        self._free: dict[tuple[tuple[int, ...], np.dtype[Any]], list[NDArray[Any]]] = {}
        self._in_use: WeakValueDictionary[int, NDArray[Any]] = WeakValueDictionary()
        self._preferred: NamedArrays = {}

    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return an array with undefined values."""
        free = self._free.get((shape, dtype))
        array = free.pop() if free else np.empty(shape, dtype)
        self._in_use[id(array)] = array
        return array

    def copy(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return a copy of ``array`` in an array of the pool."""
        out = self.take(array.shape, array.dtype)
        np.copyto(out, array)
        return out

    def prefer(self, part: NamedArrays) -> None:
        """Use these arrays once each, by name, in :meth:`take_named`; the caller keeps their ownership."""
        self._preferred = dict(part)

    def take_named(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return the preferred array of that name if shape and dtype match, otherwise one of :meth:`take`."""
        array = self._preferred.pop(name, None)
        return array if array is not None and (array.shape, array.dtype) == (shape, dtype) else self.take(shape, dtype)

    def release_all(self, part: NamedArrays) -> None:
        """Release each array of a summand."""
        for array in part.values():
            self.release(array)

    def release(self, array: NDArray[Any]) -> None:
        """Return an array to the pool, after which it must not be used; arrays from elsewhere are ignored."""
        if self._in_use.get(id(array)) is array:
            del self._in_use[id(array)]
            self._free.setdefault((array.shape, array.dtype), []).append(array)
