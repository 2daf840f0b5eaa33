"""``int8``, ``int4``, ``int2``: evenly spaced levels; a step per channel, optionally one per sentence."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from ...core.errors import ConfigError
from ...core.message import Array, Encoded
from .base import ArrayLayout, Bound, EncodeError, Leaf, Shape, expect_bytes, expect_floats, need_floats
from .bitpack import packed_bytes
from .lengths import as_lengths
from .scales import Steps, group_codes, inverse, read_steps, round_steps, steps_bytes

Rounding: TypeAlias = Literal["nearest", "stochastic"]
Floats: TypeAlias = NDArray[np.float32]

#: Unit in the last place, relative, by bytes per number.
_EPSILON = {2: 2.0**-10, 4: 2.0**-23, 8: 2.0**-52}


@dataclass(frozen=True, slots=True)
class Grid:
    """Levels ``(n - zero) · step`` for codes n from ``zero - half`` to ``zero + half``."""

    zero: float
    half: float

    @classmethod
    def of(cls, bits: int, *, even: bool) -> Grid:
        """``even``: all 2^bits levels, none of them 0; else 2^bits - 1 of them, symmetric about 0."""
        return cls((2**bits - 1) / 2, (2**bits - 1) / 2) if even else cls(2 ** (bits - 1), 2 ** (bits - 1) - 1)


class _Quantizer:
    """What the three widths share.

    Channels are the last axis; an array of one axis or none is a single channel. A float64 array is
    rounded to float32 first. Non-finite values are refused.

    **Error.** ``step/2`` for values in range when rounding to nearest, ``step`` when stochastic, with the
    step as the receiver knows it (rounded up to half precision, so it is never below the one asked for by
    more than 2⁻¹⁰; with groups, up to 2^(1/16) above). Steps given by the caller may be too small for the
    array; what lies beyond the outermost level is clipped to it. Steps below 2⁻¹²⁵ are taken as zero.

    Parameters
    ----------
    rounding : {"nearest", "stochastic"}
        Stochastic rounding is unbiased within range and needs ``seed``.
    scales : array-like [C] or a number, optional
        Range of each channel: its max-abs for a symmetric grid, **its step for an even one** (spec §9:
        0.335σ), its rms with ``groups``. Default: taken from the array, so that nothing is clipped.
    groups : array-like of int, optional
        Sentence lengths; rows of the array, in order, belong to sentences. The range of (sentence s,
        channel c) is then rms_c · max |x/rms| over the sentence (spec §9).
    seed : int or numpy Generator, optional
        For stochastic rounding. With a number, encoding the same array gives the same bytes.
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
            raise ConfigError(f"{self.name}: rounding is 'nearest' or 'stochastic', not '{rounding}'")
        if rounding == "stochastic" and seed is None:
            raise ConfigError(f"{self.name}: stochastic rounding needs a seed", hint="take one from the seed tree")
        self.rounding, self.seed = rounding, seed
        self.groups = None if groups is None else as_lengths(groups, self.name)
        self.scales = None if scales is None else np.asarray(scales, np.float64)
        if self.scales is not None and (
            self.scales.ndim > 1 or not (_finite(self.scales) and (self.scales >= 0).all())
        ):
            raise ConfigError(f"{self.name}: scales are one finite, non-negative number per channel")

    @property
    def grid(self) -> Grid:
        """The levels in use."""
        return Grid.of(self.bits, even=self.even)

    def encode(self, array: Array) -> Encoded:
        """Quantize; see :meth:`encode_within`."""
        return self.encode_within(array, None)

    def encode_within(self, array: Array, outer: NDArray[np.int64] | None) -> Encoded:
        """Quantize.

        Parameters
        ----------
        array : array of float16, float32 or float64
        outer : array of int64, optional
            Sentence lengths that an outer encoding sends already; equal ``groups`` are not sent twice.

        Raises
        ------
        EncodeError
            Another type, a non-finite value, or scales or groups of another size than the array's.
        """
        x = self._rows(array)
        steps = self._steps(x)
        return Encoded(steps.pack(inherited=self._same(outer)), self._codes(x, steps))

    def size(self, shape: Shape, dtype: DTypeLike = np.float32) -> int:
        """``2 + 2C`` for the scales, what the groups need, and ``⌈prod(shape) · bits / 8⌉``."""
        return self.size_within(shape, None)

    def size_within(self, shape: Shape, outer: NDArray[np.int64] | None) -> int:
        """:meth:`size` inside an encoding that sends the lengths ``outer``."""
        channels = shape[-1] if len(shape) > 1 else 1
        side = steps_bytes(channels, self.groups, inherited=self._same(outer))
        return side + packed_bytes(math.prod(shape), self.bits)

    def error_bound(self, array: Array) -> Bound:
        """Half a step (a whole one if stochastic) in range; beyond, the distance to the outermost level."""
        x = self._rows(array)
        steps = self._steps(x)
        # [M, C] with groups, else [C]
        step: Bound = steps.channel.astype(np.float64)
        rows = steps.rows
        if rows is not None:
            step = step * rows
        grid = self.grid
        beyond = np.abs(x) - grid.half * step
        share = 1.0 if self.rounding == "stochastic" else 0.5
        # Rounding of the float32 arithmetic, and of the result to the array's type.
        width = array.dtype.itemsize
        slack = (np.abs(x) + step) * max(2.0**-22, _EPSILON[width]) + (2.0**-25 if width == 2 else 2.0**-117)
        bound: Bound = np.maximum(share * step, beyond) + slack
        return bound.reshape(array.shape)

    def _rows(self, array: Array) -> Floats:
        need_floats(array, self.name)
        channels = array.shape[-1] if array.ndim > 1 else 1
        with np.errstate(over="ignore", under="ignore"):
            flat: Floats = array.astype(np.float32, copy=False).reshape(
                math.prod(array.shape[:-1]) if array.ndim > 1 else -1, channels
            )
        if not _finite(flat):
            raise EncodeError(f"'{self.name}' cannot write a value that is not finite in float32")
        if self.scales is not None and self.scales.ndim and self.scales.size != channels:
            raise EncodeError(f"'{self.name}' got {self.scales.size} scales for {channels} channels")
        if self.groups is not None and int(self.groups.sum()) != flat.shape[0]:
            raise EncodeError(
                f"'{self.name}' got groups of {int(self.groups.sum())} rows in all for {flat.shape[0]} rows"
            )
        return flat

    def _same(self, outer: NDArray[np.int64] | None) -> bool:
        return outer is not None and self.groups is not None and np.array_equal(outer, self.groups)

    def _steps(self, x: Floats) -> Steps:
        """Steps for rows x [M, C]."""
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
            raise EncodeError(f"'{self.name}' got scales that are too far from the array's values")
        return Steps(rms, exponent + power, self.even, lengths, codes)

    def _codes(self, x: Floats, steps: Steps) -> NDArray[np.uint8]:
        """Codes of rows x [M, C], packed."""
        grid, rows = self.grid, steps.rows
        with np.errstate(over="ignore"):
            y = x * inverse(steps.channel)
            if rows is not None:
                y *= np.divide(1, rows, out=np.zeros_like(rows), where=rows > 0)
        # Round before the codes' offset is added: near 128 a float32 has seven bits less behind the point.
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
    """Eight bits: ``round(x / s · 127)``; 127 steps of ``max-abs / 127`` each way, and zero stays zero.

    Parameters
    ----------
    rounding, scales, groups, seed
        As for every quantizer.
    """

    name = "int8"
    bits = 8


class Int4(_Quantizer):
    """Four bits, two to a byte, the even element in the low nibble.

    Parameters
    ----------
    grid : {"mid_tread", "uniform16"}
        ``mid_tread``: −7 … 7 steps of ``max-abs / 7``; zero stays zero. ``uniform16``: 16 levels at (q −
        7.5) steps, which spans ± max-abs with all codes.
    **options
        ``rounding``, ``scales``, ``groups``, ``seed`` as for every quantizer.
    """

    name = "int4"
    bits = 4

    def __init__(self, *, grid: Literal["mid_tread", "uniform16"] = "mid_tread", **options: Any) -> None:
        if grid not in ("mid_tread", "uniform16"):
            raise ConfigError(f"int4: the grid is 'mid_tread' or 'uniform16', not '{grid}'")
        self.even = grid == "uniform16"
        super().__init__(**options)


class Int2(_Quantizer):
    """Two bits, four to a byte: levels at −1.5, −0.5, 0.5 and 1.5 steps."""

    name = "int2"
    bits = 2
    even = True


def leaf(bits: int, name: str) -> Leaf:
    """The decoder of a width."""

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
    """Pack codes of 2, 4 or 8 bits, first element lowest; the last byte is filled with zeros."""
    if bits == 8:
        return codes
    per = 8 // bits
    short = -codes.size % per
    if short:
        codes = np.concatenate([codes, np.zeros(short, np.uint8)])
    # Neighboring bytes as one little-endian number: shifts bring every element's bits into its lowest byte.
    wide = codes.view("<u2" if per == 2 else "<u4")
    packed = wide | (wide >> (8 - bits))
    if per == 4:
        packed |= (wide >> 12) | (wide >> 18)
    out: NDArray[np.uint8] = packed.astype(np.uint8)
    return out


@lru_cache(maxsize=16)
def _table(bits: int, zero: float) -> Array:
    """The ``8 / bits`` numbers that a byte stands for, as one item per byte."""
    byte = np.arange(256)[:, None] >> np.arange(0, 8, bits)[None, :]
    values = np.ascontiguousarray((byte & (2**bits - 1)).astype(np.float32) - np.float32(zero))
    return values.view(np.complex64 if bits == 4 else np.complex128).reshape(256)


def _unpack(body: NDArray[np.uint8], bits: int, count: int, zero: float) -> Floats:
    """Undo :func:`_pack`, and subtract ``zero``; float32 [count]."""
    if bits == 8:
        plain = body.astype(np.float32)
        plain -= np.float32(zero)
        return plain
    values: Floats = _table(bits, zero).take(body).view(np.float32)
    return values[:count]


def _finite(x: NDArray[Any]) -> bool:
    return bool(np.isfinite(x).all())
