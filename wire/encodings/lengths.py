"""Sentence lengths as side data: one byte with the bit width of the longest, and the packed lengths."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...core.errors import ConfigError, WireError
from .bitpack import pack_bits, packed_bytes, unpack_bits

#: Maximum number of lengths of one tensor, checked before they are unpacked.
MAX_LENGTHS = 1 << 20


def as_lengths(lengths: ArrayLike, what: str) -> NDArray[np.int64]:
    """Return a copy of ``lengths`` as int64 [n].

    Raises
    ------
    ConfigError
        Not a one-dimensional array of integers in [0, 2**32), or too many.
    """
    array = np.asarray(lengths)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu") or array.size > MAX_LENGTHS:
        raise ConfigError(f"{what}: lengths must be a list of integers, not {array.dtype} of shape {list(array.shape)}")
    if array.size and (int(array.min()) < 0 or int(array.max()) >> 32):
        raise ConfigError(f"{what}: lengths must be 0 to 2^32 - 1, not {int(array.min())} to {int(array.max())}")
    return array.astype(np.int64)


def pack_lengths(lengths: NDArray[np.int64]) -> bytes:
    """Return the width (at least 1) and the packed lengths."""
    width = max(1, int(lengths.max(initial=0)).bit_length())
    return bytes([width]) + pack_bits(lengths, width).tobytes()


def lengths_bytes(lengths: NDArray[np.int64]) -> int:
    """Return the size of the result of :func:`pack_lengths`."""
    return 1 + packed_bytes(lengths.size, max(1, int(lengths.max(initial=0)).bit_length()))


def unpack_lengths(side: memoryview, count: int) -> tuple[int, NDArray[np.int64]]:
    """Read ``count`` lengths from the start of ``side``.

    Returns
    -------
    used : int
        Bytes read.
    lengths : array of int64 [count]

    Raises
    ------
    WireError
        There are too many lengths, the side data are too short, or the width is invalid.
    """
    if count > MAX_LENGTHS:
        raise WireError(f"{count} lengths exceed the limit of {MAX_LENGTHS}")
    if not side:
        raise WireError("the side data end before the lengths")
    width = side[0]
    if not 1 <= width <= 32:
        raise WireError(f"invalid bit width {width} of lengths")
    used = 1 + packed_bytes(count, width)
    if len(side) < used:
        raise WireError(f"the side data end within the lengths: {len(side)} of {used} bytes")
    lengths: NDArray[np.int64] = unpack_bits(side[1:used], count, width, np.dtype(np.int64)).astype(
        np.int64, copy=False
    )
    return used, lengths
