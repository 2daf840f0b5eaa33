"""Packs integers of up to 32 bits without gaps, least significant bit first."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.message import Array

#: Elements processed at a time, to limit the working memory. A multiple of 8, so that every part starts at a byte
#: boundary.
_PART = 1 << 16


def packed_bytes(count: int, width: int) -> int:
    """Return the bytes of ``count`` packed integers of ``width`` bits."""
    return (count * width + 7) // 8


def pack_bits(values: Array, width: int) -> NDArray[np.uint8]:
    """Pack non-negative integers below ``2**width`` (0 ≤ width ≤ 32).

    Parameters
    ----------
    values : array of bool or int, any shape
        Packed in C order. Not checked against ``width``.
    width : int
        Bits per value.
    """
    flat = np.ascontiguousarray(values).reshape(-1)
    if width in (8, 16, 32):
        return flat.astype(f"<u{width // 8}").view(np.uint8)
    if width == 1:
        return np.packbits(flat.astype(np.uint8), bitorder="little")
    out = np.empty(packed_bytes(flat.size, width), np.uint8)
    for start in range(0, flat.size, _PART):
        part = flat[start : start + _PART].astype("<u4").view(np.uint8).reshape(-1, 4)
        bits = np.unpackbits(part, axis=1, count=width, bitorder="little")
        packed = np.packbits(bits.reshape(-1), bitorder="little")
        at = start * width // 8
        out[at : at + packed.size] = packed
    return out


def unpack_bits(body: memoryview, count: int, width: int, dtype: np.dtype[Any]) -> Array:
    """Invert :func:`pack_bits`. The caller must check that ``body`` has :func:`packed_bytes` bytes.

    Returns
    -------
    array [count] of ``dtype``
    """
    if not count or not width:
        return np.zeros(count, dtype)
    source = np.frombuffer(body, np.uint8)
    if width in (8, 16, 32):
        return source.view(f"<u{width // 8}").astype(dtype)
    out: Array = np.empty(count, dtype)
    for start in range(0, count, _PART):
        n = min(_PART, count - start)
        at = start * width // 8
        part = source[at : at + packed_bytes(n, width)]
        bits = np.unpackbits(part, count=n * width, bitorder="little").reshape(n, width)
        whole = np.packbits(bits, axis=1, bitorder="little")
        wide = np.zeros((n, 4), np.uint8)
        wide[:, : whole.shape[1]] = whole
        out[start : start + n] = wide.view("<u4")[:, 0]
    return out
