"""``fp16`` and ``bf16``: two bytes per number, rounded to nearest, ties to even."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike

from ...core.message import Array, Encoded
from .base import Bound, EncodeError, Layout, Shape, expect_bytes, expect_floats, little, need_floats


@dataclass(frozen=True, slots=True)
class Fp16:
    """IEEE half precision.

    Error: at most ``|x|·2⁻¹¹ + 2⁻²⁵``. Infinities and NaN pass; a finite value beyond ±65,504 is refused.
    """

    @property
    def name(self) -> str:
        return "fp16"

    @property
    def lossy(self) -> bool:
        return True

    def encode(self, array: Array) -> Encoded:
        """Round to half precision.

        Raises
        ------
        EncodeError
            Not a floating-point array, or a finite value is too large.
        """
        need_floats(array, self.name)
        try:
            # The conversion sets the processor's overflow flag, which costs no pass of its own.
            with np.errstate(over="raise", under="ignore"):
                body = np.ascontiguousarray(array).astype("<f2", copy=False)
        except FloatingPointError:
            raise EncodeError(
                "a value is beyond the ±65,504 of 'fp16'", cure="use bf16, int8 or raw"
            ) from None
        return Encoded(b"", body)

    def size(self, shape: Shape, dtype: DTypeLike = np.float32) -> int:
        """``2 · prod(shape)``."""
        return 2 * math.prod(shape)

    def error_bound(self, array: Array) -> Bound:
        """Half a unit in the last place."""
        return np.abs(array.astype(np.float64)) * 2.0**-11 + 2.0**-25


@dataclass(frozen=True, slots=True)
class Bf16:
    """The upper half of a float32.

    Error: at most ``|x|·2⁻⁸ + 2⁻¹³³`` (float64 is rounded to float32 first). Infinities and NaN pass; a
    finite value that would round to infinity is refused.
    """

    @property
    def name(self) -> str:
        return "bf16"

    @property
    def lossy(self) -> bool:
        return True

    def encode(self, array: Array) -> Encoded:
        """Round to bfloat16.

        Raises
        ------
        EncodeError
            Not a floating-point array, or a finite value is too large.
        """
        need_floats(array, self.name)
        try:
            with np.errstate(over="raise", under="ignore"):
                single = np.ascontiguousarray(array).astype("<f4", copy=False)
        except FloatingPointError:
            raise EncodeError("a value is beyond float32, and so beyond 'bf16'", cure="send it raw") from None
        bits = single.view("<u4")
        # Ties to even: add just under half, and one more where the kept part is odd.
        rounded = bits >> 16
        rounded &= 1
        rounded += 0x7FFF
        rounded += bits
        rounded >>= 16
        body = rounded.astype("<u2")
        special = (body & 0x7F80) == 0x7F80
        special |= (body & 0x7FFF) == 0  # a NaN with all bits set wraps round to zero
        if special.any():
            _repair(body, single, special)
        return Encoded(b"", body)

    def size(self, shape: Shape, dtype: DTypeLike = np.float32) -> int:
        """``2 · prod(shape)``."""
        return 2 * math.prod(shape)

    def error_bound(self, array: Array) -> Bound:
        """Half a unit in the last place."""
        return np.abs(array.astype(np.float64)) * 2.0**-8 + 2.0**-133


def _repair(body: Array, single: Array, special: Array) -> None:
    """Keep NaN a NaN; refuse finite values that became infinite. ``special`` marks where either may be."""
    nan = np.isnan(single)
    body[nan] = np.uint16(0x7FC0)
    became = special & np.isfinite(single) & ((body & 0x7F80) == 0x7F80)  # type: ignore[operator]
    if became.any():
        raise EncodeError("a value would round to infinity in 'bf16'", cure="send it raw")


def decode_fp16(side: memoryview, body: memoryview, layout: Layout) -> Array:
    """Widen to the layout's type."""
    expect_floats(layout, "fp16")
    expect_bytes("side data of 'fp16'", len(side), 0)
    expect_bytes("the body of 'fp16'", len(body), 2 * layout.size)
    return np.frombuffer(body, "<f2").astype(layout.dtype).reshape(layout.shape)


def decode_bf16(side: memoryview, body: memoryview, layout: Layout) -> Array:
    """Widen to the layout's type."""
    expect_floats(layout, "bf16")
    expect_bytes("side data of 'bf16'", len(side), 0)
    expect_bytes("the body of 'bf16'", len(body), 2 * layout.size)
    bits = np.frombuffer(body, "<u2").astype("<u4")
    bits <<= 16
    with np.errstate(over="ignore"):  # bf16 reaches further than float16
        wide: Array = little(bits).view("<f4").astype(layout.dtype, copy=False)
    return wide.reshape(layout.shape)
