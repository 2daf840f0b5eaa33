"""``topk``: sends the elements of largest magnitude and their indices; the others are decoded to zeros."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ...core.errors import ConfigError, WireError
from ...core.message import Array, Encoded
from .base import ArrayLayout, Bound, EncodeError, Shape, Transform, expect_floats, require_floats, zero_bound
from .bitpack import pack_bits, packed_bytes, unpack_bits

_COUNT_BYTES = 4


@dataclass(frozen=True, slots=True)
class TopK:
    """The ``⌈fraction · n⌉`` elements of largest magnitude (Aji and Heafield 2017, without their threshold).

    Among equal magnitudes, the elements with lower indices are selected, so that the same array always gives the same
    bytes. Side data: the number of elements in four bytes, and their indices with ⌈log₂ n⌉ bits each, or a bitmap of n
    bits if that is shorter.

    Parameters
    ----------
    fraction : float
        Fraction of the elements to send, above 0 and at most 1.
    """

    fraction: float

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ConfigError(f"topk: the fraction must be above 0 and at most 1, not {self.fraction:g}")

    @property
    def name(self) -> str:
        return "topk"

    @property
    def lossy(self) -> bool:
        return True

    def encode(self, array: Array) -> Encoded:
        """Select the elements of largest magnitude.

        Raises
        ------
        EncodeError
            The array is not floating point, a value is not finite, or it has 2³² elements or more.
        """
        require_floats(array, self.name)
        if array.size >> 32:
            raise EncodeError(f"'topk' encodes fewer than 2^32 elements, not {array.size}")
        if not np.isfinite(array).all():
            raise EncodeError("'topk' cannot encode non-finite values")
        indices = self._indices(array)
        side = indices.size.to_bytes(_COUNT_BYTES, "little") + _pack_indices(indices, array.size)
        return Encoded(side, array.reshape(-1).take(indices))

    def size(self, shape: Shape, dtype: DTypeLike = np.float32) -> int:
        """Side data, and the values as ``raw``."""
        return self.side_size(shape) + self.count(shape) * np.dtype(dtype).itemsize

    def side_size(self, shape: Shape) -> int:
        """Bytes of the number of elements and their indices."""
        return _COUNT_BYTES + _index_bytes(self.count(shape), math.prod(shape))

    def inner_shape(self, shape: Shape) -> tuple[int, ...]:
        """Shape of the body."""
        return (self.count(shape),)

    def count(self, shape: Shape) -> int:
        """Number of elements that are sent of an array of this shape."""
        return min(math.prod(shape), math.ceil(self.fraction * math.prod(shape)))

    def error_bound(self, array: Array) -> Bound:
        """Zero for elements that are sent, ``|x|`` for the others."""
        return self.scatter_bound(array, zero_bound(array.reshape(-1)))

    def scatter_bound(self, array: Array, inner: Bound) -> Bound:
        """Return the bounds of all elements from those of the sent ones; the error of the others is ``|x|``."""
        bound = np.abs(array.astype(np.float64)).reshape(-1)
        indices = self._indices(array)
        bound[indices] = np.broadcast_to(inner, indices.shape)
        return bound.reshape(array.shape)

    def _indices(self, array: Array) -> NDArray[np.int64]:
        """Return the indices of the selected elements in ascending order."""
        count = self.count(array.shape)
        if not count:
            return np.zeros(0, np.int64)
        magnitude = np.abs(array.reshape(-1))
        threshold = np.partition(magnitude, magnitude.size - count)[magnitude.size - count]
        selected = magnitude > threshold
        tied = np.flatnonzero(magnitude == threshold)
        selected[tied[: count - np.count_nonzero(selected)]] = True
        return np.flatnonzero(selected)


def _width(size: int) -> int:
    """Return the number of bits of an index into an array of ``size`` elements."""
    return max(1, (size - 1).bit_length()) if size else 1


def _uses_bitmap(count: int, size: int) -> bool:
    return count * _width(size) > size


def _index_bytes(count: int, size: int) -> int:
    return packed_bytes(size, 1) if _uses_bitmap(count, size) else packed_bytes(count, _width(size))


def _pack_indices(indices: NDArray[np.int64], size: int) -> bytes:
    if not _uses_bitmap(indices.size, size):
        return pack_bits(indices, _width(size)).tobytes()
    bitmap = np.zeros(size, np.bool_)
    bitmap[indices] = True
    return pack_bits(bitmap, 1).tobytes()


def _unpack_indices(side: memoryview, count: int, size: int) -> NDArray[np.int64]:
    if not _uses_bitmap(count, size):
        indices: NDArray[np.int64] = unpack_bits(side, count, _width(size), np.dtype(np.int64)).astype(
            np.int64, copy=False
        )
        if count and not (bool((np.diff(indices) > 0).all()) and int(indices[-1]) < size):
            raise WireError(f"the indices of 'topk' are not ascending and below {size}")
        return indices
    indices = np.flatnonzero(np.unpackbits(np.frombuffer(side, np.uint8), count=size, bitorder="little"))
    if indices.size != count:
        raise WireError(f"the bitmap of 'topk' marks {indices.size} elements, expected {count}")
    return indices


def _split(side: memoryview, layout: ArrayLayout) -> tuple[int, int]:
    """Return ``(side bytes used, elements sent)`` after checking them."""
    expect_floats(layout, "topk")
    if len(side) < _COUNT_BYTES:
        raise WireError("the side data end before the number of elements")
    count = int.from_bytes(side[:_COUNT_BYTES], "little")
    if count > layout.size or layout.size >> 32:
        raise WireError(f"'topk' cannot send {count} of {layout.size} elements")
    used = _COUNT_BYTES + _index_bytes(count, layout.size)
    if len(side) < used:
        raise WireError(f"the side data end within the indices of {count} elements")
    return used, count


def _inner(side: memoryview, layout: ArrayLayout) -> tuple[int, ArrayLayout]:
    used, count = _split(side, layout)
    return used, ArrayLayout(layout.dtype, (count,))


def _restore(side: memoryview, inner: Array, layout: ArrayLayout) -> Array:
    _, count = _split(side, layout)
    indices = _unpack_indices(side[_COUNT_BYTES:], count, layout.size)
    out: Array = np.zeros(layout.size, layout.dtype)
    out[indices] = inner
    return out.reshape(layout.shape)


TOPK = Transform(_inner, _restore)
