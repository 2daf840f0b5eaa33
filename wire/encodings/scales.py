"""Quantizer steps as side data: half precision per channel, one byte per sentence, one shared exponent.

The step of channel c is ``h_c · 2^e``: ``h_c`` half precision, ``e`` one signed byte for all channels,
chosen so that the largest ``h_c`` lies in [2¹⁴, 2¹⁵]. So steps may be as small as gradients get, and a
channel may be 2²⁸ times smaller than the largest before its step loses precision. With groups, the step
of (sentence s, channel c) is ``h_c · 2^e · g_s``, where ``g_s`` is a power of 2^(1/16) down to 2^-15.9,
or 0 for a sentence of zeros, as one byte.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...core.errors import WireError
from .base import EncodeError
from .lengths import MOST, lengths_bytes, pack_lengths, unpack_lengths

_GROUPED, _INHERITED, _EVEN = 1, 2, 4

#: Factor of a sentence by its byte.
FACTORS = np.exp2((np.arange(256) - 255) / 16.0).astype(np.float32)
FACTORS[0] = 0.0

#: Steps below are no normal float32 once inverted; such channels are written as zeros.
SMALLEST = np.float32(2.0**-125)


@dataclass(frozen=True, slots=True, eq=False)
class Steps:
    """Steps exactly as the receiver will know them.

    Attributes
    ----------
    half : array of float16 [C]
    exponent : int
        −128 … 127.
    even : bool
        Whether the grid has an even number of levels, none of them zero.
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
        """Step of each channel, before the group's factor; float32 [C]."""
        with np.errstate(over="ignore"):
            return np.ldexp(self.half.astype(np.float32), self.exponent)

    @property
    def rows(self) -> NDArray[np.float32] | None:
        """Factor of each row; float32 [M, 1]."""
        if self.lengths is None or self.codes is None:
            return None
        return np.repeat(FACTORS.take(self.codes), self.lengths)[:, None]

    def pack(self, *, inherited: bool) -> bytes:
        """Side data: flags, exponent, steps; with groups also their lengths, unless inherited, and codes."""
        flags = _EVEN * self.even
        parts = [self.half.astype("<f2", copy=False).tobytes()]
        if self.lengths is not None and self.codes is not None:
            flags |= _GROUPED | (_INHERITED if inherited else 0)
            if not inherited:
                parts += [self.lengths.size.to_bytes(4, "little"), pack_lengths(self.lengths)]
            parts.append(self.codes.tobytes())
        return bytes((flags, self.exponent & 0xFF)) + b"".join(parts)


def steps_bytes(channels: int, lengths: NDArray[np.int64] | None, *, inherited: bool) -> int:
    """Exact size of :meth:`Steps.pack`."""
    if lengths is None:
        return 2 + 2 * channels
    return 2 + 2 * channels + lengths.size + (0 if inherited else 4 + lengths_bytes(lengths))


def read_steps(side: memoryview, rows: int, channels: int, outer: NDArray[np.int64] | None) -> Steps:
    """Read :meth:`Steps.pack`.

    Parameters
    ----------
    rows, channels : int
        M and C of the array.
    outer : array of int64 [G], optional
        Lengths that an outer encoding knows.

    Raises
    ------
    WireError
        The side data has another size than it must, or holds impossible values.
    """
    at = 2 + 2 * channels
    if len(side) < at:
        raise WireError(f"the side data has {len(side)} bytes where {channels} scales need {at}")
    flags, exponent = side[0], side[1] - ((side[1] & 0x80) << 1)
    if flags & ~(_GROUPED | _INHERITED | _EVEN) or (flags & _INHERITED and not flags & _GROUPED):
        raise WireError(f"the scales have unknown flags {flags:#04x}")
    half = np.frombuffer(side[2:at], "<f2")
    lengths = codes = None
    if flags & _GROUPED:
        used, lengths = _read_lengths(side[at:], outer if flags & _INHERITED else None, bool(flags & _INHERITED))
        if int(lengths.sum()) != rows:
            raise WireError(f"the sentence lengths add up to {int(lengths.sum())} rows where the array has {rows}")
        at += used
        codes = np.frombuffer(side[at : at + lengths.size], np.uint8)
        at += lengths.size
    if len(side) != at:
        raise WireError(f"the side data has {len(side)} bytes where {at} belong")
    steps = Steps(half, exponent, bool(flags & _EVEN), lengths, codes)
    if channels and not (half.view("<u2").max() < 0x7C00 and float(steps.channel.max()) < np.inf):
        raise WireError("a scale is negative, infinite or not a number")
    return steps


def _read_lengths(side: memoryview, outer: NDArray[np.int64] | None, inherited: bool) -> tuple[int, NDArray[np.int64]]:
    if inherited:
        if outer is None:
            raise WireError("the scales refer to sentence lengths that no outer encoding holds")
        count, used, lengths = outer.size, 0, outer
    else:
        count = int.from_bytes(side[:4], "little")
        # Every group also has a code of one byte: a count that the side data cannot hold ends here.
        if len(side) < 4 or count > min(len(side), MOST):
            raise WireError(f"the side data of {len(side)} bytes cannot hold {count} sentence scales")
        used, lengths = unpack_lengths(side[4:], count)
        used += 4
    if len(side) - used < count:
        raise WireError(f"the side data ends within {count} sentence scales")
    return used, lengths


def round_steps(steps: NDArray[np.float64], *, up: bool) -> tuple[NDArray[np.float16], int]:
    """Half-precision steps and their exponent; ``up`` never rounds a step down, so that it clips nothing.

    Raises
    ------
    EncodeError
        A step is larger than float32 reaches.
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
    """Codes [G] and the power of two that they are relative to, of each group's needed factor, rounded up."""
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
    """``1 / step``, 0 where the step is zero or too small to invert."""
    usable = step >= SMALLEST
    return np.divide(1, step, out=np.zeros_like(step), where=usable)
