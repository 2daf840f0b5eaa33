"""``int8``, ``int4``, ``int2``: uniform quantization with a step size per channel, optionally scaled per sentence."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from ...core.errors import ConfigError
from ...core.message import Array, Encoded
from .base import ArrayLayout, Bound, EncodeError, Leaf, Shape, expect_bytes, expect_floats, require_floats
from .bitpack import packed_bytes
from .lengths import as_lengths
from .scales import Steps, group_codes, inverse, read_steps, round_steps, steps_bytes

Rounding: TypeAlias = Literal["nearest", "stochastic"]
Floats: TypeAlias = NDArray[np.float32]

#: Relative unit in the last place, by bytes per number.
_EPSILON = {2: 2.0**-10, 4: 2.0**-23, 8: 2.0**-52}


@dataclass(frozen=True, slots=True)
class Grid:
    """A quantization grid: levels ``(n - zero) · step`` for codes n from ``zero - half`` to ``zero + half``."""

    zero: float
    half: float

    @classmethod
    def of(cls, bits: int, *, even: bool) -> Grid:
        """Return a grid: ``even`` = mid-rise, 2^bits levels without 0; else mid-tread, 2^bits - 1 levels with 0."""
        return cls((2**bits - 1) / 2, (2**bits - 1) / 2) if even else cls(2 ** (bits - 1), 2 ** (bits - 1) - 1)


class _Quantizer:
    """Base class of the quantizers.

    The last axis is the channel axis; an array with fewer than two axes is a single channel. A float64 array is rounded
    to float32 first. Non-finite values are errors.

    **Error.** Within range, ``step/2`` when rounding to nearest and ``step`` with stochastic rounding, for the step
    size that the receiver gets. Step sizes are sent in half precision: those computed from the array are rounded up,
    those given by the caller may become smaller by a relative 2⁻¹⁰ at most. With groups, they are up to 2^(1/16)
    larger. If the caller's scales are too small for the array, values beyond the outermost level are clipped to it.
    Steps below 2⁻¹²⁵ are treated as zero.

    Parameters
    ----------
    rounding : {"nearest", "stochastic"}
        Stochastic rounding is unbiased within range and requires ``seed``.
    scales : array-like [C] or float, optional
        Scale of each channel: the maximum absolute value for a mid-tread grid, **the step size for a mid-rise one**
        (0.335σ for Gaussian values, see ``docs/methods/split_fine_tuning.md``), the rms with ``groups``. Default:
        computed from the array, so that no value is clipped.
    groups : array-like of int, optional
        Sentence lengths: the number of consecutive rows of each sentence. The maximum absolute value of (sentence s,
        channel c) is then taken as rms_c · max |x/rms| over the sentence.
    seed : int or numpy Generator, optional
        For stochastic rounding. With an integer, encoding the same array gives the same bytes.
    """

    name: ClassVar[str]
    bits: ClassVar[int]
    lossy: ClassVar[bool] = True
    even: bool = False

    def __init__(
        self,
        *,
        rounding: Rounding = "nearest",
        scales: ArrayLike | None = None,
        groups: ArrayLike | None = None,
        seed: int | np.random.Generator | None = None,
    ) -> None:
        if rounding not in ("nearest", "stochastic"):
            raise ConfigError(f"{self.name}: rounding must be 'nearest' or 'stochastic', not '{rounding}'")
        if rounding == "stochastic" and seed is None:
            raise ConfigError(f"{self.name}: stochastic rounding requires a seed", hint="use one of the seed tree")
        self.rounding, self.seed = rounding, seed
        self.groups = None if groups is None else as_lengths(groups, self.name)
        self.scales = None if scales is None else np.asarray(scales, np.float64)
        if self.scales is not None and (
            self.scales.ndim > 1 or not (_finite(self.scales) and (self.scales >= 0).all())
        ):
            raise ConfigError(f"{self.name}: scales must be one finite, non-negative number per channel")

    @property
    def grid(self) -> Grid:
        """The quantization grid."""
        return Grid.of(self.bits, even=self.even)

    def encode(self, array: Array) -> Encoded:
        """Quantize the array; see :meth:`encode_within`."""
        return self.encode_within(array, None)

    def encode_within(self, array: Array, outer: NDArray[np.int64] | None) -> Encoded:
        """Quantize the array inside another encoding.

        Parameters
        ----------
        array : array of float16, float32 or float64
        outer : array of int64, optional
            Sentence lengths sent by an outer encoding; equal ``groups`` are not sent again.

        Raises
        ------
        EncodeError
            The array has another dtype or a non-finite value, or scales or groups do not match its shape.
        """
        x = self._rows(array)
        steps = self._steps(x)
        return Encoded(steps.pack(inherited=self._inherits(outer)), self._codes(x, steps))

    def size(self, shape: Shape, dtype: DTypeLike = np.float32) -> int:
        """``2 + 2C`` for the scales, the bytes of the groups, and ``⌈prod(shape) · bits / 8⌉``."""
        return self.size_within(shape, None)

    def size_within(self, shape: Shape, outer: NDArray[np.int64] | None) -> int:
        """:meth:`size` inside an encoding that sends the lengths ``outer``."""
        channels = shape[-1] if len(shape) > 1 else 1
        side = steps_bytes(channels, self.groups, inherited=self._inherits(outer))
        return side + packed_bytes(math.prod(shape), self.bits)

    def error_bound(self, array: Array) -> Bound:
        """Half a step (a whole one if stochastic) within range; beyond it, the distance to the outermost level."""
        x = self._rows(array)
        steps = self._steps(x)
        # [M, C] with groups, else [C]
        step: Bound = steps.channel.astype(np.float64)
        rows = steps.rows
        if rows is not None:
            step = step * rows
        grid = self.grid
        clipped = np.abs(x) - grid.half * step
        fraction = 1.0 if self.rounding == "stochastic" else 0.5
        # Rounding errors of float32 arithmetic, and of the conversion to the array's dtype.
        itemsize = array.dtype.itemsize
        slack = (np.abs(x) + step) * max(2.0**-22, _EPSILON[itemsize]) + (2.0**-25 if itemsize == 2 else 2.0**-117)
        bound: Bound = np.maximum(fraction * step, clipped) + slack
        return bound.reshape(array.shape)

    def _rows(self, array: Array) -> Floats:
        require_floats(array, self.name)
        channels = array.shape[-1] if array.ndim > 1 else 1
        with np.errstate(over="ignore", under="ignore"):
            flat: Floats = array.astype(np.float32, copy=False).reshape(
                math.prod(array.shape[:-1]) if array.ndim > 1 else -1, channels
            )
        if not _finite(flat):
            raise EncodeError(f"'{self.name}' cannot encode values that are not finite in float32")
        if self.scales is not None and self.scales.ndim and self.scales.size != channels:
            raise EncodeError(f"'{self.name}' got {self.scales.size} scales for {channels} channels")
        if self.groups is not None and int(self.groups.sum()) != flat.shape[0]:
            raise EncodeError(
                f"'{self.name}' got groups with {int(self.groups.sum())} rows in total for {flat.shape[0]} rows"
            )
        return flat

    def _inherits(self, outer: NDArray[np.int64] | None) -> bool:
        return outer is not None and self.groups is not None and np.array_equal(outer, self.groups)

    def _steps(self, x: Floats) -> Steps:
        """Return the steps of rows x [M, C]."""
        channels, half = x.shape[1], self.grid.half
        given = None if self.scales is None else np.broadcast_to(self.scales, (channels,))
        if self.groups is not None:
            rms = np.sqrt(np.square(x, dtype=np.float64).sum(0) / max(1, x.shape[0])) if given is None else given
            return self._group_steps(x, *round_steps(rms, up=False))
        if given is None:
            top = np.abs(x).max(axis=0, initial=0.0).astype(np.float64)
            return Steps(*round_steps(top / half, up=True), self.even)
        return Steps(*round_steps(given if self.even else given / half, up=False), self.even)

    def _group_steps(self, x: Floats, rms: NDArray[np.float16], exponent: int) -> Steps:
        lengths = self.groups
        assert lengths is not None
        unit = Steps(rms, exponent, self.even).channel
        with np.errstate(over="ignore"):
            relative = np.multiply(np.abs(x), inverse(unit)).reshape(-1)
        peaks = np.zeros(lengths.size)
        filled = lengths > 0
        if relative.size:
            starts = (np.cumsum(lengths) - lengths)[filled] * x.shape[1]
            peaks[filled] = np.maximum.reduceat(relative, starts) / np.float64(self.grid.half)
        codes, power = group_codes(np.nan_to_num(peaks))
        if not (_finite(peaks) and -128 <= exponent + power <= 112):
            raise EncodeError(f"'{self.name}' got scales whose magnitude does not match the array's values")
        return Steps(rms, exponent + power, self.even, lengths, codes)

    def _codes(self, x: Floats, steps: Steps) -> NDArray[np.uint8]:
        """Return the packed codes of rows x [M, C]."""
        grid, rows = self.grid, steps.rows
        with np.errstate(over="ignore"):
            y = x * inverse(steps.channel)
            if rows is not None:
                y *= np.divide(1, rows, out=np.zeros_like(rows), where=rows > 0)
        # Round before adding the offset of the codes: near 128, a float32 has seven fractional bits less than near 1.
        if self.even:
            y += np.float32(0.5)
        if self.rounding == "nearest":
            np.rint(y, out=y)
        else:
            y += np.random.default_rng(self.seed).random(y.shape, np.float32)
            np.floor(y, out=y)
        y += np.float32(math.floor(grid.zero))
        np.clip(y, np.float32(grid.zero - grid.half), np.float32(grid.zero + grid.half), out=y)
        return _pack(y.reshape(-1).astype(np.uint8), self.bits)


class Int8(_Quantizer):
    """Eight bits per value: ``round(x / s · 127)``, with steps of ``max-abs / 127``; zero is preserved.

    Parameters
    ----------
    rounding, scales, groups, seed
        As for every quantizer.
    """

    name = "int8"
    bits = 8


class Int4(_Quantizer):
    """Four bits per value; the element of even index is in the low nibble.

    Parameters
    ----------
    grid : {"mid_tread", "uniform16"}
        ``mid_tread``: −7 … 7 steps of ``max-abs / 7``; zero is preserved. ``uniform16``: 16 levels at
        (code − 7.5) steps, from −max-abs to max-abs.
    **options
        ``rounding``, ``scales``, ``groups``, ``seed`` as for every quantizer.
    """

    name = "int4"
    bits = 4

    def __init__(self, *, grid: Literal["mid_tread", "uniform16"] = "mid_tread", **options: Any) -> None:
        if grid not in ("mid_tread", "uniform16"):
            raise ConfigError(f"int4: the grid must be 'mid_tread' or 'uniform16', not '{grid}'")
        self.even = grid == "uniform16"
        super().__init__(**options)


class Int2(_Quantizer):
    """Two bits per value: levels at −1.5, −0.5, 0.5 and 1.5 steps."""

    name = "int2"
    bits = 2
    even = True


def leaf(bits: int, name: str) -> Leaf:
    """Return the decoder of the quantizer with ``bits`` per value."""

    def decode(side: memoryview, body: memoryview, layout: ArrayLayout) -> Array:
        expect_floats(layout, name)
        shape = layout.shape
        channels = shape[-1] if len(shape) > 1 else 1
        rows = math.prod(shape[:-1]) if len(shape) > 1 else layout.size
        steps = read_steps(side, rows, channels, layout.groups)
        expect_bytes(f"the body of '{name}'", len(body), packed_bytes(layout.size, bits))
        grid = Grid.of(bits, even=steps.even)
        x = _unpack(np.frombuffer(body, np.uint8), bits, layout.size, grid.zero).reshape(rows, channels)
        factors = steps.rows
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            x *= steps.channel
            if factors is not None:
                x *= factors
            # A step is rounded up: the outermost level may lie a hair beyond what the type holds.
            if layout.dtype.itemsize == 2:
                np.clip(x, -65504, 65504, out=x)
            out: Array = x.astype(layout.dtype, copy=False)
        return out.reshape(shape)

    return decode


def _pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Pack codes of 2, 4 or 8 bits, first element in the lowest bits; the last byte is padded with zeros."""
    if bits == 8:
        return codes
    per_byte = 8 // bits
    padding = -codes.size % per_byte
    if padding:
        codes = np.concatenate([codes, np.zeros(padding, np.uint8)])
    # View neighboring bytes as one little-endian number: shifts move the bits of all elements to its lowest byte.
    wide = codes.view("<u2" if per_byte == 2 else "<u4")
    packed = wide | (wide >> (8 - bits))
    if per_byte == 4:
        packed |= (wide >> 12) | (wide >> 18)
    out: NDArray[np.uint8] = packed.astype(np.uint8)
    return out


@lru_cache(maxsize=16)
def _table(bits: int, zero: float) -> Array:
    """Return a lookup table with the ``8 / bits`` float32 values of each byte, as one complex number."""
    byte = np.arange(256)[:, None] >> np.arange(0, 8, bits)[None, :]
    values = np.ascontiguousarray((byte & (2**bits - 1)).astype(np.float32) - np.float32(zero))
    return values.view(np.complex64 if bits == 4 else np.complex128).reshape(256)


def _unpack(body: NDArray[np.uint8], bits: int, count: int, zero: float) -> Floats:
    """Invert :func:`_pack` and subtract ``zero``; returns float32 [count]."""
    if bits == 8:
        unpacked = body.astype(np.float32)
        unpacked -= np.float32(zero)
        return unpacked
    values: Floats = _table(bits, zero).take(body).view(np.float32)
    return values[:count]


def _finite(x: NDArray[Any]) -> bool:
    return bool(np.isfinite(x).all())
