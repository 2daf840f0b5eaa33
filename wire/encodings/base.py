"""Common parts of encodings: the layout of a decoded array, the two kinds of decoder, checks.

An encoding is either a *leaf*, which encodes values as bytes (``raw``, ``fp16``, ``int4`` …), or a *transform*, which
converts an array to a smaller array that is encoded by the next stage (``ragged``, ``lowrank``, ``topk``). A name on
the wire consists of any number of transforms and at most one leaf, joined by ``|``; a missing leaf is ``raw``.
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
    """An array cannot be encoded: it has a non-finite or too large value, or the wrong dtype or shape."""


@dataclass(frozen=True, slots=True, eq=False)
class ArrayLayout:
    """Dtype and shape of a decoded array.

    Attributes
    ----------
    dtype : np.dtype
        NumPy dtype of the elements (uint16 for bf16).
    shape : tuple[int, ...]
    groups : array of int64, optional
        Number of consecutive rows in each group (sentence lengths), if an outer transform sent them.
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


class SizedEncoding(Encoding, Protocol):
    """An encoding with known size and error bound; all encodings of this package are."""

    def size(self, shape: Shape, dtype: DTypeLike = np.float32) -> int:
        """Exact payload bytes, including side data, of an array with this shape and dtype."""

    def error_bound(self, array: Array) -> Bound:
        """Upper bound of |decoded − original| for each element; broadcasts to ``array.shape``."""


#: Decoder of a leaf: ``(side, body, layout) -> array``. Raises WireError; allocates at most a small multiple of the
#: layout's size.
Leaf: TypeAlias = Callable[[memoryview, memoryview, ArrayLayout], Array]


@dataclass(frozen=True, slots=True)
class Transform:
    """Decoder of a transform.

    Attributes
    ----------
    inner : callable
        ``(side, layout) -> (side bytes used, layout of the inner array)``; the inner array is never larger than the
        outer one.
    restore : callable
        ``(side, inner array, layout) -> array``.
    """

    inner: Callable[[memoryview, ArrayLayout], tuple[int, ArrayLayout]]
    restore: Callable[[memoryview, Array, ArrayLayout], Array]


def zero_bound(array: Array) -> Bound:
    """Return the error bound of a lossless encoding."""
    return np.zeros((1,) * array.ndim)


def require_floats(array: Array, encoding: str) -> None:
    """Raise :class:`EncodeError` unless the dtype is float16, float32 or float64."""
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise EncodeError(
            f"'{encoding}' encodes floating-point arrays, not {array.dtype}",
            hint="use 'raw', or 'bits' for labels",
        )


def expect_floats(layout: ArrayLayout, encoding: str) -> None:
    """Raise :class:`WireError` unless the decoded array has a floating-point dtype."""
    if layout.dtype.kind != "f":
        raise WireError(f"'{encoding}' encodes floating-point arrays, not {layout.dtype}")


def expect_bytes(what: str, got: int, expected: int) -> None:
    """Raise :class:`WireError` unless a part of the payload has the expected size."""
    if got != expected:
        raise WireError(f"{what} has {got} bytes, expected {expected}")


def to_little_endian(array: Array) -> Array:
    """Return the array C-contiguous and little-endian; without a copy if it already is."""
    converted: Array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return converted if array.ndim else converted.reshape(())


__all__ = [
    "ArrayLayout",
    "Bound",
    "EncodeError",
    "Encoded",
    "Leaf",
    "Shape",
    "SizedEncoding",
    "Transform",
    "expect_bytes",
    "expect_floats",
    "require_floats",
    "to_little_endian",
    "zero_bound",
]
