"""Sentence lengths as side data: one byte for the width, then as many bits each as the longest needs."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...core.errors import ConfigError, WireError
from .bitpack import pack_bits, packed_bytes, unpack_bits

#: More sentences than this in one tensor are refused before their lengths are unpacked.
MOST = 1 << 20


def as_lengths(lengths: ArrayLike, what: str) -> NDArray[np.int64]:
    """A private copy of ``lengths`` as int64 [n].

    Raises
    ------
    ConfigError
        Not a flat list of whole numbers in [0, 2**32).
    """
    given = np.asarray(lengths)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu") or given.size > MOST:
        raise ConfigError(f"{what}: lengths are a flat list of integers, not {given.dtype} {list(given.shape)}")
    if given.size and (int(given.min()) < 0 or int(given.max()) >> 32):
        raise ConfigError(f"{what}: a length is between 0 and 2^32 - 1, not {int(given.min())} … {int(given.max())}")
    return given.astype(np.int64)


def pack_lengths(lengths: NDArray[np.int64]) -> bytes:
    """Width (at least 1), then the bits."""
    width = max(1, int(lengths.max(initial=0)).bit_length())
    return bytes([width]) + pack_bits(lengths, width).tobytes()


def lengths_bytes(lengths: NDArray[np.int64]) -> int:
    """Exact size of :func:`pack_lengths`."""
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
        Too many, or the side data is too short or has an impossible width.
    """
    if count > MOST:
        raise WireError(f"{count} lengths are more than {MOST}")
    if not side:
        raise WireError("the side data ends before the lengths")
    width = side[0]
    if not 1 <= width <= 32:
        raise WireError(f"lengths of {width} bits are impossible")
    used = 1 + packed_bytes(count, width)
    if len(side) < used:
        raise WireError(f"the side data ends within the lengths: {len(side)} of {used} bytes")
    lengths: NDArray[np.int64] = unpack_bits(side[1:used], count, width, np.dtype(np.int64)).astype(
        np.int64, copy=False
    )
    return used, lengths
