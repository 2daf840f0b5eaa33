"""Quantization steps as side data: half precision per channel, a common exponent, one byte per sentence.

The step of channel c is ``h_c · 2^e``, with ``h_c`` in half precision and one signed byte ``e`` for all channels, so
that the largest ``h_c`` is in [2¹⁴, 2¹⁵]. This covers the magnitudes of gradients, and a channel may be 2²⁸ times
smaller than the largest before its step loses precision. With groups, the step of (sentence s, channel c) is
``h_c · 2^e · g_s``. The factor ``g_s`` is a power of 2^(1/16) from 2^-15.9 to 1, or 0 for a sentence of zeros, and is
sent as one byte.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...core.errors import WireError
from .base import EncodeError
from .lengths import MAX_LENGTHS, lengths_bytes, pack_lengths, unpack_lengths

_GROUPED, _INHERITED, _EVEN = 1, 2, 4

#: Factor of a sentence, by its byte.
FACTORS = np.exp2((np.arange(256) - 255) / 16.0).astype(np.float32)
FACTORS[0] = 0.0

#: Inverses of smaller steps are not normal float32 numbers; such channels are encoded as zeros.
MIN_STEP = np.float32(2.0**-125)


@dataclass(frozen=True, slots=True, eq=False)
class Steps:
    """Quantization steps with the precision that the receiver gets.

    Attributes
    ----------
    half : array of float16 [C]
        ``h_c`` of each channel.
    exponent : int
        ``e``, −128 … 127.
    even : bool
        Whether the grid is mid-rise: an even number of levels, without zero.
    lengths : array of int64 [G], optional
        Rows of each group; None = no groups.
    codes : array of uint8 [G], optional
        Index into :data:`FACTORS` of each group.
    """

    half: NDArray[np.float16]
    exponent: int
    even: bool
    lengths: NDArray[np.int64] | None = None
    codes: NDArray[np.uint8] | None = None

    @property
    def channel(self) -> NDArray[np.float32]:
        """Step of each channel, without the factors of groups; float32 [C]."""
        with np.errstate(over="ignore"):
            return np.ldexp(self.half.astype(np.float32), self.exponent)

    @property
    def rows(self) -> NDArray[np.float32] | None:
        """Factor of each row, float32 [M, 1]; None without groups."""
        if self.lengths is None or self.codes is None:
            return None
        return np.repeat(FACTORS.take(self.codes), self.lengths)[:, None]

    def pack(self, *, inherited: bool) -> bytes:
        """Return the side data: flags, exponent, steps; with groups also lengths (unless inherited) and codes."""
        flags = _EVEN * self.even
        parts = [self.half.astype("<f2", copy=False).tobytes()]
        if self.lengths is not None and self.codes is not None:
            flags |= _GROUPED | (_INHERITED if inherited else 0)
            if not inherited:
                parts += [self.lengths.size.to_bytes(4, "little"), pack_lengths(self.lengths)]
            parts.append(self.codes.tobytes())
        return bytes((flags, self.exponent & 0xFF)) + b"".join(parts)


def steps_bytes(channels: int, lengths: NDArray[np.int64] | None, *, inherited: bool) -> int:
    """Return the size of the result of :meth:`Steps.pack`."""
    if lengths is None:
        return 2 + 2 * channels
    return 2 + 2 * channels + lengths.size + (0 if inherited else 4 + lengths_bytes(lengths))


def read_steps(side: memoryview, rows: int, channels: int, outer: NDArray[np.int64] | None) -> Steps:
    """Parse side data of :meth:`Steps.pack`.

    Parameters
    ----------
    rows, channels : int
        M and C of the array.
    outer : array of int64 [G], optional
        Lengths sent by an outer encoding.

    Raises
    ------
    WireError
        The side data have the wrong size or invalid values.
    """
    at = 2 + 2 * channels
    if len(side) < at:
        raise WireError(f"the side data have {len(side)} bytes, {channels} scales require {at}")
    flags, exponent = side[0], side[1] - ((side[1] & 0x80) << 1)
    if flags & ~(_GROUPED | _INHERITED | _EVEN) or (flags & _INHERITED and not flags & _GROUPED):
        raise WireError(f"the scales have unknown flags {flags:#04x}")
    half = np.frombuffer(side[2:at], "<f2")
    lengths = codes = None
    if flags & _GROUPED:
        used, lengths = _read_lengths(side[at:], outer if flags & _INHERITED else None, bool(flags & _INHERITED))
        if int(lengths.sum()) != rows:
            raise WireError(f"the sentence lengths add up to {int(lengths.sum())} rows, the array has {rows}")
        at += used
        codes = np.frombuffer(side[at : at + lengths.size], np.uint8)
        at += lengths.size
    if len(side) != at:
        raise WireError(f"the side data have {len(side)} bytes, expected {at}")
    steps = Steps(half, exponent, bool(flags & _EVEN), lengths, codes)
    if channels and not (half.view("<u2").max() < 0x7C00 and float(steps.channel.max()) < np.inf):
        raise WireError("a scale is negative, infinite or not a number")
    return steps


def _read_lengths(side: memoryview, outer: NDArray[np.int64] | None, inherited: bool) -> tuple[int, NDArray[np.int64]]:
    if inherited:
        if outer is None:
            raise WireError("the scales refer to sentence lengths that no outer encoding has sent")
        count, used, lengths = outer.size, 0, outer
    else:
        count = int.from_bytes(side[:4], "little")
        # Every group has a code of one byte, so the size of the side data bounds the count.
        if len(side) < 4 or count > min(len(side), MAX_LENGTHS):
            raise WireError(f"side data of {len(side)} bytes cannot contain {count} sentence scales")
        used, lengths = unpack_lengths(side[4:], count)
        used += 4
    if len(side) - used < count:
        raise WireError(f"the side data end within {count} sentence scales")
    return used, lengths


def round_steps(steps: NDArray[np.float64], *, up: bool) -> tuple[NDArray[np.float16], int]:
    """Return half-precision steps and their exponent; ``up`` = round up, so that no value is clipped.

    Raises
    ------
    EncodeError
        A step exceeds the range of float32.
    """
    top = float(steps.max(initial=0.0))
    exponent = max(-128, int(np.frexp(top)[1]) - 15) if top else 0
    if exponent > 112:
        raise EncodeError("a scale is too large for float32")
    scaled = np.ldexp(steps, -exponent)
    half = scaled.astype("<f2")
    low = half < scaled if up else (half == 0) & (scaled > 0)
    half.view("<u2")[low] += 1
    return half, exponent


def group_codes(peaks: NDArray[np.float64]) -> tuple[NDArray[np.uint8], int]:
    """Return codes [G] of the groups' factors, rounded up, and the power of two to which they are relative."""
    top = float(peaks.max(initial=0.0))
    if not top:
        return np.zeros(peaks.size, np.uint8), 0
    power = int(np.frexp(top)[1])
    relative = np.ldexp(peaks, -power)  # in [0, 1)
    with np.errstate(divide="ignore"):
        codes = np.clip(255 + np.ceil(16 * np.log2(relative)), 1, 255).astype(np.uint8)
    codes[(FACTORS.take(codes) < relative) & (codes < 255)] += 1  # log2 may have rounded down
    codes[peaks == 0] = 0
    return codes, power


def inverse(step: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return ``1 / step``, or 0 if the step is zero or too small to invert."""
    usable = step >= MIN_STEP
    return np.divide(1, step, out=np.zeros_like(step), where=usable)
