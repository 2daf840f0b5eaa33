"""``topk``: the largest elements of an array and where they stand; the others arrive as zeros."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ...core.errors import ConfigError, WireError
from ...core.message import Array, Encoded
from .base import ArrayLayout, Bound, EncodeError, Shape, Transform, expect_floats, need_floats, no_error
from .bitpack import pack_bits, packed_bytes, unpack_bits

_COUNT_BYTES = 4


@dataclass(frozen=True, slots=True)
class TopK:
    """The ``⌈fraction · n⌉`` elements of largest magnitude (Aji and Heafield 2017, without their threshold).

    Of equal magnitudes the first count as larger, so the same array always gives the same bytes. Side data: how many
    there are, in four bytes, and their places: as many bits for each as the largest place may need, or a bit for every
    element of the array where that is less.

    Parameters
    ----------
    fraction : float
        Share of the elements that is sent, above 0 and at most 1.
    """

    fraction: float

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ConfigError(f"topk: the fraction is above 0 and at most 1, not {self.fraction:g}")

    @property
    def name(self) -> str:
        return "topk"

    @property
    def lossy(self) -> bool:
        return True

    def encode(self, array: Array) -> Encoded:
        """Select.

        Raises
        ------
        EncodeError
            Not floating point, a value is not finite, or there are 2³² elements or more.
        """
        need_floats(array, self.name)
        if array.size >> 32:
            raise EncodeError(f"'topk' numbers up to 2^32 elements, not {array.size}")
        if not np.isfinite(array).all():
            raise EncodeError("'topk' cannot write a value that is not finite")
        places = self._places(array)
        side = places.size.to_bytes(_COUNT_BYTES, "little") + _pack_places(places, array.size)
        return Encoded(side, array.reshape(-1).take(places))

    def size(self, shape: Shape, dtype: DTypeLike = np.float32) -> int:
        """Side data, and the values sent raw."""
        return self.side_size(shape) + self.count(shape) * np.dtype(dtype).itemsize

    def side_size(self, shape: Shape) -> int:
        """Bytes of count and places."""
        return _COUNT_BYTES + _places_bytes(self.count(shape), math.prod(shape))

    def inner_shape(self, shape: Shape) -> tuple[int, ...]:
        """Shape of the body."""
        return (self.count(shape),)

    def count(self, shape: Shape) -> int:
        """How many elements of an array of this shape are sent."""
        return min(math.prod(shape), math.ceil(self.fraction * math.prod(shape)))

    def error_bound(self, array: Array) -> Bound:
        """Zero for the elements that are sent, ``|x|`` for the others."""
        return self.spread_bound(array, no_error(array.reshape(-1)))

    def spread_bound(self, array: Array, inner: Bound) -> Bound:
        """Put the bounds of the sent elements back at their places; the others are lost whole."""
        bound = np.abs(array.astype(np.float64)).reshape(-1)
        places = self._places(array)
        bound[places] = np.broadcast_to(inner, places.shape)
        return bound.reshape(array.shape)

    def _places(self, array: Array) -> NDArray[np.int64]:
        """Places of the largest elements, ascending."""
        count = self.count(array.shape)
        if not count:
            return np.zeros(0, np.int64)
        size = np.abs(array.reshape(-1))
        least = np.partition(size, size.size - count)[size.size - count]
        chosen = size > least
        tied = np.flatnonzero(size == least)
        chosen[tied[: count - np.count_nonzero(chosen)]] = True
        return np.flatnonzero(chosen)


def _width(size: int) -> int:
    """Bits of the largest place in an array of ``size`` elements."""
    return max(1, (size - 1).bit_length()) if size else 1


def _as_mask(count: int, size: int) -> bool:
    return count * _width(size) > size


def _places_bytes(count: int, size: int) -> int:
    return packed_bytes(size, 1) if _as_mask(count, size) else packed_bytes(count, _width(size))


def _pack_places(places: NDArray[np.int64], size: int) -> bytes:
    if not _as_mask(places.size, size):
        return pack_bits(places, _width(size)).tobytes()
    mask = np.zeros(size, np.bool_)
    mask[places] = True
    return pack_bits(mask, 1).tobytes()


def _unpack_places(side: memoryview, count: int, size: int) -> NDArray[np.int64]:
    if not _as_mask(count, size):
        places: NDArray[np.int64] = unpack_bits(side, count, _width(size), np.dtype(np.int64)).astype(
            np.int64, copy=False
        )
        if count and not (bool((np.diff(places) > 0).all()) and int(places[-1]) < size):
            raise WireError(f"the places of 'topk' do not ascend within {size} elements")
        return places
    places = np.flatnonzero(np.unpackbits(np.frombuffer(side, np.uint8), count=size, bitorder="little"))
    if places.size != count:
        raise WireError(f"'topk' marks {places.size} elements where it sends {count}")
    return places


def _split(side: memoryview, layout: ArrayLayout) -> tuple[int, int]:
    """``(side bytes used, elements sent)``, checked."""
    expect_floats(layout, "topk")
    if len(side) < _COUNT_BYTES:
        raise WireError("the side data ends before the number of elements")
    count = int.from_bytes(side[:_COUNT_BYTES], "little")
    if count > layout.size or layout.size >> 32:
        raise WireError(f"'topk' cannot send {count} of {layout.size} elements")
    used = _COUNT_BYTES + _places_bytes(count, layout.size)
    if len(side) < used:
        raise WireError(f"the side data ends within the places of {count} elements")
    return used, count


def _inner(side: memoryview, layout: ArrayLayout) -> tuple[int, ArrayLayout]:
    used, count = _split(side, layout)
    return used, ArrayLayout(layout.dtype, (count,))


def _restore(side: memoryview, inner: Array, layout: ArrayLayout) -> Array:
    _, count = _split(side, layout)
    places = _unpack_places(side[_COUNT_BYTES:], count, layout.size)
    out: Array = np.zeros(layout.size, layout.dtype)
    out[places] = inner
    return out.reshape(layout.shape)


TOPK = Transform(_inner, _restore)
