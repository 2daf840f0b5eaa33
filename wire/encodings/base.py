"""What every encoding shares: the layout of a decoded array, the two kinds of decoder, checks.

An encoding is either a *leaf*, which writes values as bytes (``raw``, ``fp16``, ``int4`` …), or a
*transform*, which turns an array into a smaller array that a leaf then writes (``ragged``, ``lowrank``).
A name on the wire is any number of transforms and at most one leaf, joined by ``|``; a missing leaf is
``raw``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ...core.errors import WireError
from ...core.message import Array, Encoded, Encoding

Shape: TypeAlias = Sequence[int]
Bound: TypeAlias = NDArray[np.float64]


class EncodeError(WireError):
    """An array cannot be written in the encoding chosen for it: a non-finite value, a wrong type or shape."""


@dataclass(frozen=True, slots=True, eq=False)
class ArrayLayout:
    """What an array will be once decoded.

    Attributes
    ----------
    dtype : np.dtype
        Type that carries the elements (uint16 for bf16).
    shape : tuple[int, ...]
    groups : array of int64, optional
        How the rows belong together (sentence lengths), where an outer transform knows it.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    groups: NDArray[np.int64] | None = None

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the decoded array."""
        return self.size * self.dtype.itemsize


class Sized(Encoding, Protocol):
    """An encoding that can tell its cost and its error beforehand, as all of ours can."""

    def size(self, shape: Shape, dtype: DTypeLike = np.float32) -> int:
        """Exact payload bytes, side data included, of an array of this shape and type."""

    def error_bound(self, array: Array) -> Bound:
        """Largest possible |decoded − original| for each element; broadcasts to ``array.shape``."""


#: ``(side, body, layout) -> array``; raises WireError, and allocates nothing larger than a small multiple
#: of the layout.
Leaf: TypeAlias = Callable[[memoryview, memoryview, ArrayLayout], Array]


@dataclass(frozen=True, slots=True)
class Transform:
    """The decoding half of a transform.

    Attributes
    ----------
    inner : callable
        ``(side, layout) -> (side bytes used, layout of the array inside)``; the inner array is never the
        larger one.
    restore : callable
        ``(side, inner array, layout) -> array``.
    """

    inner: Callable[[memoryview, ArrayLayout], tuple[int, ArrayLayout]]
    restore: Callable[[memoryview, Array, ArrayLayout], Array]


def no_error(array: Array) -> Bound:
    """The bound of a lossless encoding."""
    return np.zeros((1,) * array.ndim)


def need_floats(array: Array, encoding: str) -> None:
    """Raise :class:`EncodeError` unless ``array`` holds floating-point numbers NumPy knows."""
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise EncodeError(
            f"'{encoding}' writes floating-point arrays, not {array.dtype}",
            hint="send it raw, or as bits if it holds labels",
        )


def expect_floats(layout: ArrayLayout, encoding: str) -> None:
    """Raise :class:`WireError` when a frame says that ``encoding`` gave another type than floating point."""
    if layout.dtype.kind != "f":
        raise WireError(f"'{encoding}' holds floating-point numbers, not {layout.dtype}")


def expect_bytes(what: str, got: int, wanted: int) -> None:
    """Raise :class:`WireError` unless a part of the payload has exactly the size that the shape asks for."""
    if got != wanted:
        raise WireError(f"{what} has {got} bytes where {wanted} belong")


def little(array: Array) -> Array:
    """C-contiguous and little-endian; the same object where it already is."""
    kept: Array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return kept if array.ndim else kept.reshape(())


__all__ = [
    "ArrayLayout",
    "Bound",
    "EncodeError",
    "Encoded",
    "Leaf",
    "Shape",
    "Sized",
    "Transform",
    "expect_bytes",
    "expect_floats",
    "little",
    "need_floats",
    "no_error",
]
