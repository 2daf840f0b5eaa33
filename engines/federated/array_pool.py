"""Arrays of a model's size that are needed no more, for whoever needs one next: fresh memory costs more than the copy
or the multiplication that fills it.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from .tree import Part


class ArrayPool:
    """Arrays by shape and type; it holds as many as were ever in use at once, one for each level of a tree.

    Only what it lent is taken back: other arrays are somebody's, however they came here.
    """

    def __init__(self) -> None:
        self._free: dict[tuple[tuple[int, ...], np.dtype[Any]], list[NDArray[Any]]] = {}
        self._lent: WeakValueDictionary[int, NDArray[Any]] = WeakValueDictionary()
        self._first: Part = {}

    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """An array whose values mean nothing."""
        free = self._free.get((shape, dtype))
        array = free.pop() if free else np.empty(shape, dtype)
        self._lent[id(array)] = array
        return array

    def copied(self, array: NDArray[Any]) -> NDArray[Any]:
        """An array with the values of another."""
        out = self.take(array.shape, array.dtype)
        np.copyto(out, array)
        return out

    def prefer(self, part: Part) -> None:
        """Have the next summand written to these arrays, each by its name; they are the caller's and stay so."""
        self._first = dict(part)

    def summand(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """As :meth:`take`, for the array ``name`` of a summand."""
        first = self._first.pop(name, None)
        return first if first is not None and (first.shape, first.dtype) == (shape, dtype) else self.take(shape, dtype)

    def give_all(self, part: Part) -> None:
        """Hand the arrays of a summand over."""
        for array in part.values():
            self.give(array)

    def give(self, array: NDArray[Any]) -> None:
        """Hand an array over; nobody may look at it any more. One that was not lent is left alone."""
        if self._lent.get(id(array)) is array:
            del self._lent[id(array)]
            self._free.setdefault((array.shape, array.dtype), []).append(array)
