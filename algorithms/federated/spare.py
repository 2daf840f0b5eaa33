"""Arrays that were added to others and are needed no more, for the next summands: fresh memory of a model's size costs
more than the multiplication that fills it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .tree import Part


class Spare:
    """Arrays by shape and type; it holds as many as were ever in use at once, one for each level of a tree."""

    def __init__(self) -> None:
        self._free: dict[tuple[tuple[int, ...], np.dtype[Any]], list[NDArray[Any]]] = {}

    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """An array whose values mean nothing."""
        free = self._free.get((shape, dtype))
        return free.pop() if free else np.empty(shape, dtype)

    def give_all(self, part: Part) -> None:
        """Hand the arrays of a summand over."""
        for array in part.values():
            self.give(array)

    def give(self, array: NDArray[Any]) -> None:
        """Hand an array over; nobody may look at it any more. Views and read-only arrays are left alone."""
        if array.flags.owndata and array.flags.writeable and array.flags.c_contiguous:
            self._free.setdefault((array.shape, array.dtype), []).append(array)
