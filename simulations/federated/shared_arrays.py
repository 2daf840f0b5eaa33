"""Named arrays in shared memory, which several processes access without copying or pickling."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .shared_block import Block, allocate, open_block

#: Alignment of each array in bytes.
_ALIGNMENT = 64


class SharedPart(dict[str, NDArray[Any]]):
    """The arrays of one block of shared memory, by name; it knows its block."""

    block: SharedArrays


class SharedArrays:
    """Arrays of fixed names, shapes and dtypes in one block of shared memory.

    One process creates them (:meth:`like`) and removes them at the end. Others open them (:meth:`open`) from their
    :meth:`description`.
    """

    def __init__(self, memory: Block, layout: Mapping[str, tuple[str, list[int]]], *, owner: bool) -> None:
        self._memory, self._layout, self._owner = memory, dict(layout), owner
        self.arrays = SharedPart()
        self.arrays.block = self
        offset = 0
        for name, (dtype, shape) in self._layout.items():
            self.arrays[name] = np.ndarray(tuple(shape), np.dtype(dtype), memory.buf, offset)
            offset += _padded(self.arrays[name].nbytes)

    @classmethod
    def like(cls, arrays: Mapping[str, NDArray[Any]], folder: Path | None = None) -> SharedArrays:
        """Allocate memory for arrays with the same names, shapes and dtypes; the values are not copied.

        ``folder`` and errors are those of :func:`.shared_block.allocate`.
        """
        layout = {name: (array.dtype.str, list(array.shape)) for name, array in arrays.items()}
        size = sum(_padded(array.nbytes) for array in arrays.values())
        return cls(allocate(max(1, size), folder), layout, owner=True)

    @classmethod
    def open(cls, description: Mapping[str, Any]) -> SharedArrays:
        """Open the arrays that another process created."""
        memory = open_block(str(description["memory"]))
        size = sum(_padded(np.dtype(d).itemsize * math.prod(shape)) for d, shape in description["layout"].values())
        if size > memory.size:
            raise ValueError("a description of shared arrays is larger than their memory")
        return cls(memory, description["layout"], owner=False)

    def description(self) -> dict[str, Any]:
        """Return a description for :meth:`open` that can be serialized to JSON."""
        return {"memory": self._memory.name, "layout": self._layout}

    def fill(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Copy arrays with the same names, shapes and dtypes into the memory, except those that are in it already."""
        for name, mine in self.arrays.items():
            if arrays[name] is not mine:
                np.copyto(mine, arrays[name], casting="no")

    def close(self) -> None:
        """Close the memory; in the process that created it, also remove it."""
        self.arrays.clear()
        self._memory.close()
        if self._owner:
            self._memory.unlink()


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
