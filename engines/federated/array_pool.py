"""A free list of model-sized arrays, which avoids the cost of fresh memory.

Page faults of newly allocated memory cost more than the copy or multiplication that fills it.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from .tree import NamedArrays


class _Memory(np.ndarray[Any, Any]):
    """The memory of one array of a pool; it says whose it is and whether it is in use."""

    pool: ArrayPool
    in_use: bool


@runtime_checkable
class UsesArrayPool(Protocol):
    """Capability of a federated method: it takes the memory of updates and summands from a pool that it is given."""

    array_pool: ArrayPool | None


@runtime_checkable
class LendsState(Protocol):
    """Capability of a federated method: its updates may hold views of the resident model instead of copies."""

    can_lend_state: bool
    lends_state: bool


class ArrayPool:
    """Free arrays by shape and dtype; it grows to the largest number in use at once, one per level of a tree sum.

    Only arrays that the pool handed out are taken back; others are ignored, since they have another owner.
    """

    def __init__(self) -> None:
        self._free: dict[tuple[tuple[int, ...], np.dtype[Any]], list[NDArray[Any]]] = {}
        self._preferred: NamedArrays = {}

    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return an array with undefined values."""
        free = self._free.get((shape, dtype))
        array = free.pop() if free else self._allocate(shape, dtype)
        array.base.in_use = True  # type: ignore[union-attr]
        return array

    def _allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """An array whose ``base`` is memory of this pool."""
        memory = _Memory(shape, dtype)
        memory.pool = self
        return memory.view(np.ndarray)

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
        memory = array.base
        whole = isinstance(memory, _Memory) and (array.shape, array.dtype) == (memory.shape, memory.dtype)
        if isinstance(memory, _Memory) and whole and memory.pool is self and memory.in_use:
            memory.in_use = False
            self._free.setdefault((array.shape, array.dtype), []).append(array)
