"""``ragged``: sends padded sequences without the padding."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from ...core.errors import WireError
from ...core.message import Array, Encoded
from .base import ArrayLayout, Bound, EncodeError, Shape, Transform, zero_bound
from .lengths import as_lengths, lengths_bytes, pack_lengths, unpack_lengths

#: Positions restored at a time, so that index arrays stay small compared with the result.
_PART = 1 << 16


class Ragged:
    """Sends the first ``lengths[b]`` rows of each ``array[b]``.

    Lossless for those rows; padding is decoded to zeros. Side data: one byte with the bit width of the longest length,
    and the packed lengths.

    Parameters
    ----------
    lengths : array-like of int [B]
        Number of rows to send of each entry of the first axis.
    """

    name: ClassVar[str] = "ragged"
    lossy: ClassVar[bool] = False

    def __init__(self, lengths: ArrayLike) -> None:
        self.lengths: NDArray[np.int64] = as_lengths(lengths, self.name)

    def encode(self, array: Array) -> Encoded:
        """Remove the padding: [B, T, …] → [Σ lengths, …].

        Raises
        ------
        EncodeError
            The array has fewer than two axes, another B, or a T less than the longest length.
        """
        self._check(array.shape)
        mask = np.arange(array.shape[1]) < self.lengths[:, None]
        rows = np.flatnonzero(mask)
        flat = array.reshape(mask.size, *array.shape[2:])
        return Encoded(pack_lengths(self.lengths), flat.take(rows, axis=0))

    def size(self, shape: Shape, dtype: DTypeLike = np.float32) -> int:
        """Lengths, and the rows as ``raw``."""
        return self.side_bytes + math.prod(self.inner_shape(shape)) * np.dtype(dtype).itemsize

    @property
    def side_bytes(self) -> int:
        """Bytes of the packed lengths."""
        return lengths_bytes(self.lengths)

    def side_size(self, shape: Shape) -> int:
        """Bytes of the packed lengths, for any shape."""
        return self.side_bytes

    def inner_shape(self, shape: Shape) -> tuple[int, ...]:
        """Shape of the body."""
        self._check(shape)
        return (int(self.lengths.sum()), *shape[2:])

    def error_bound(self, array: Array) -> Bound:
        """Zero for the rows that are sent, ``|x|`` at padding."""
        return self.scatter_bound(array, zero_bound(array[0]))

    def scatter_bound(self, array: Array, inner: Bound) -> Bound:
        """Return the bounds of all elements from those of the sent rows; the error of padding is ``|x|``."""
        bound = np.abs(array.astype(np.float64))
        mask = np.arange(array.shape[1]) < self.lengths[:, None]
        bound[mask] = np.broadcast_to(inner, (int(mask.sum()), *array.shape[2:]))
        return bound

    def _check(self, shape: Shape) -> None:
        if len(shape) < 2 or shape[0] != self.lengths.size or int(self.lengths.max(initial=0)) > shape[1]:
            raise EncodeError(
                f"'ragged' with {self.lengths.size} lengths up to {int(self.lengths.max(initial=0))} "
                f"does not fit an array of shape {list(shape)}",
                hint="give one length per entry of the first axis, at most the size of the second axis",
            )


def _inner(side: memoryview, layout: ArrayLayout) -> tuple[int, ArrayLayout]:
    if len(layout.shape) < 2:
        raise WireError(f"'ragged' requires at least two axes, not shape {list(layout.shape)}")
    used, lengths = unpack_lengths(side, layout.shape[0])
    if int(lengths.max(initial=0)) > layout.shape[1]:
        raise WireError(f"'ragged' has a length of {int(lengths.max())} for an axis of {layout.shape[1]}")
    return used, ArrayLayout(layout.dtype, (int(lengths.sum()), *layout.shape[2:]), lengths)


def _restore(side: memoryview, inner: Array, layout: ArrayLayout) -> Array:
    batch, time = layout.shape[:2]
    _, lengths = unpack_lengths(side, batch)
    out: Array = np.zeros(layout.shape, layout.dtype)
    step = max(1, _PART // max(1, time))  # entries of the first axis at a time
    at = 0
    for b in range(0, batch, step):
        part = lengths[b : b + step]
        rows = int(part.sum())
        if step == 1:
            out[b, :rows] = inner[at : at + rows]
        else:
            out[b : b + step][np.arange(time) < part[:, None]] = inner[at : at + rows]
        at += rows
    return out


RAGGED = Transform(_inner, _restore)
