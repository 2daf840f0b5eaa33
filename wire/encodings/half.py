"""``fp16`` and ``bf16``: two bytes per element, rounded to nearest, ties to even."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ...core.message import Array, Encoded
from .base import ArrayLayout, Bound, EncodeError, Shape, expect_bytes, expect_floats, require_floats

#: Elements converted at a time, so that intermediate results stay in the CPU cache.
_PART = 1 << 14


@dataclass(frozen=True, slots=True)
class Fp16:
    """IEEE half precision.

    Error: at most ``|x|·2⁻¹¹·(1 + 2⁻¹²) + 2⁻²⁵`` (float64 is rounded to float32 first). Infinities and NaN are
    preserved; finite values beyond ±65,504 are errors.
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
            The array is not floating point, or a finite value is too large.
        """
        require_floats(array, self.name)
        if array.dtype.itemsize == 2:
            return Encoded(b"", np.ascontiguousarray(array))
        single = _single(array, self.name)
        body = np.empty(single.shape, "<u2")
        flat, codes = single.reshape(-1), body.reshape(-1)
        for start in range(0, flat.size, _PART):
            _to_half(flat[start : start + _PART], codes[start : start + _PART])
        return Encoded(b"", body.view("<f2"))

    def size(self, shape: Shape, dtype: DTypeLike = np.float32) -> int:
        """``2 · prod(shape)``."""
        return 2 * math.prod(shape)

    def error_bound(self, array: Array) -> Bound:
        """Half a unit in the last place."""
        return np.abs(array.astype(np.float64)) * (2.0**-11 + 2.0**-23) + 2.0**-25


@dataclass(frozen=True, slots=True)
class Bf16:
    """bfloat16, the upper half of a float32.

    Error: at most ``|x|·2⁻⁸ + 2⁻¹³³`` (float64 is rounded to float32 first). Infinities and NaN are preserved; finite
    values that round to infinity are errors.
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
            The array is not floating point, or a finite value is too large.
        """
        require_floats(array, self.name)
        single = _single(array, self.name)
        bits = single.view("<u4")
        # Ties to even: add just under half a unit, and one more if the kept part is odd.
        rounded = bits >> 16
        rounded &= 1
        rounded += 0x7FFF
        rounded += bits
        rounded >>= 16
        body = rounded.astype("<u2")
        special = (body & 0x7F80) == 0x7F80
        special |= (body & 0x7FFF) == 0  # a NaN with all bits set overflows to zero
        if special.any():
            _restore_nan(body, single, special)
        return Encoded(b"", body)

    def size(self, shape: Shape, dtype: DTypeLike = np.float32) -> int:
        """``2 · prod(shape)``."""
        return 2 * math.prod(shape)

    def error_bound(self, array: Array) -> Bound:
        """Half a unit in the last place."""
        return np.abs(array.astype(np.float64)) * 2.0**-8 + 2.0**-133


def _single(array: Array, encoding: str) -> NDArray[np.float32]:
    """Convert to contiguous little-endian float32."""
    try:
        # The CPU's overflow flag detects large values without another pass over the array.
        with np.errstate(over="raise", under="ignore"):
            return np.ascontiguousarray(array).astype("<f4", copy=False)
    except FloatingPointError:
        raise EncodeError(f"a value exceeds the range of '{encoding}'", hint="use 'raw'") from None


def _to_half(x: NDArray[np.float32], out: NDArray[np.uint16]) -> None:
    """Round float32 [n] to the bits of float16 [n].

    Uses integer arithmetic: NumPy's cast takes twenty times longer for small values such as gradients, because each of
    them sets the CPU's underflow flag.
    """
    bits = x.view("<u4")
    size = bits & 0x7FFFFFFF
    # Ties to even as for bf16, and the exponent's bias goes from 127 to 15.
    code = size >> 13
    code &= 1
    code += 0xFFF
    code += size
    code -= 0x38000000
    code >>= 13
    small = size < 0x38800000  # below 2^-14: subnormal, the code is a multiple of 2^-24
    if small.any():
        at = np.flatnonzero(small)
        code[at] = np.rint(np.abs(x[at]) * np.float32(2.0**24)).astype("<u4")
    if size.max() >= 0x477FF000:  # 65,520, which rounds to infinity
        at = np.flatnonzero(size >= 0x477FF000)
        if (size[at] < 0x7F800000).any():
            raise EncodeError("a value exceeds the range of 'fp16', ±65,504", hint="use 'bf16', 'int8' or 'raw'")
        code[at] = np.where(size[at] == 0x7F800000, 0x7C00, 0x7E00)
    bits = bits >> 16
    bits &= 0x8000
    bits |= code
    out[...] = bits


def _restore_nan(body: Array, single: Array, special: Array) -> None:
    """Restore NaN values, and raise if a finite value became infinite. ``special`` marks the elements to check."""
    nan = np.isnan(single)
    body[nan] = np.uint16(0x7FC0)
    overflowed = special & np.isfinite(single) & ((body & 0x7F80) == 0x7F80)  # type: ignore[operator]
    if overflowed.any():
        raise EncodeError("a value rounds to infinity in 'bf16'", hint="use 'raw'")


def decode_fp16(side: memoryview, body: memoryview, layout: ArrayLayout) -> Array:
    """Convert to the layout's dtype."""
    expect_floats(layout, "fp16")
    expect_bytes("side data of 'fp16'", len(side), 0)
    expect_bytes("the body of 'fp16'", len(body), 2 * layout.size)
    return np.frombuffer(body, "<f2").astype(layout.dtype).reshape(layout.shape)


def decode_bf16(side: memoryview, body: memoryview, layout: ArrayLayout) -> Array:
    """Convert to the layout's dtype."""
    expect_floats(layout, "bf16")
    expect_bytes("side data of 'bf16'", len(side), 0)
    expect_bytes("the body of 'bf16'", len(body), 2 * layout.size)
    bits = np.frombuffer(body, "<u2").astype("<u4")
    bits <<= 16
    with np.errstate(over="ignore"):  # the range of bf16 exceeds that of float16
        wide: Array = bits.view("<f4").astype(layout.dtype, copy=False)
    return wide.reshape(layout.shape)
