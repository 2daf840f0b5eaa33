"""``lowrank``: a matrix as the product of two thin ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ...core.errors import ConfigError, WireError
from ...core.message import Array, Encoded
from .base import ArrayLayout, Bound, EncodeError, Shape, Transform, expect_floats, need_floats

#: Extra directions that the iteration carries; they make the first ``rank`` ones accurate (Halko et al.
#: 2011).
_EXTRA = 6


@dataclass(frozen=True, slots=True)
class LowRank:
    """``Y [M, N] ≈ A Qᵀ``: sends A [M, r] and Q [N, r], stacked as one body [M + N, r].

    Singular values are shared evenly between A and Q, so that a quantizer behind (``lowrank|int8``)
    serves both. Axes before the last are one. Where r(M + N) is not smaller than M·N, the array travels
    as it is. Side data: the rank, in two bytes, 0 = as it is.

    Error: that of the best rank-r approximation (Σ_{i>r} σ_i²)^½ in the Frobenius norm, times at most
    1.05 where the spectrum decays; :meth:`error_bound` measures it for the array at hand.

    Parameters
    ----------
    rank : int
        r, 1 to 65,535.
    power : int
        Power iterations; more for flatter spectra.
    seed : int
        For the random start; the same array always gives the same bytes.
    """

    rank: int
    power: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.rank <= 0xFFFF:
            raise ConfigError(f"lowrank: the rank is 1 to 65535, not {self.rank}")

    @property
    def name(self) -> str:
        return "lowrank"

    @property
    def lossy(self) -> bool:
        return True

    def encode(self, array: Array) -> Encoded:
        """Factorize.

        Raises
        ------
        EncodeError
            Not floating point, or a value is not finite.
        """
        need_floats(array, self.name)
        if not self.shrinks(array.shape):
            return Encoded(b"\0\0", array)
        y = array.reshape(-1, array.shape[-1]).astype(
            np.float64 if array.dtype.itemsize == 8 else np.float32, copy=False
        )
        if not np.isfinite(y).all():
            raise EncodeError("'lowrank' cannot write a value that is not finite")
        body = np.concatenate(self._factors(y))
        with np.errstate(over="ignore"):
            body = body.astype(array.dtype, copy=False)
        if not np.isfinite(body).all():
            raise EncodeError(f"'lowrank': the factors go beyond {array.dtype}")
        return Encoded(self.rank.to_bytes(2, "little"), body)

    def size(self, shape: Shape, dtype: DTypeLike = np.float32) -> int:
        """``2 + r(M + N) · itemsize``, or ``2 + MN · itemsize`` where that is less."""
        return self.side_size(shape) + math.prod(self.inner_shape(shape)) * np.dtype(dtype).itemsize

    def side_size(self, shape: Shape) -> int:
        """Bytes of the rank, whatever the shape."""
        return 2

    def shrinks(self, shape: Shape) -> bool:
        """Whether factors are smaller than an array of this shape."""
        return _shrinks(shape, self.rank)

    def inner_shape(self, shape: Shape) -> tuple[int, ...]:
        """Shape of the body."""
        return (math.prod(shape[:-1]) + shape[-1], self.rank) if self.shrinks(shape) else tuple(shape)

    def error_bound(self, array: Array) -> Bound:
        """The Frobenius norm of this array's own residual, which no element exceeds."""
        encoded = self.encode(array)
        again = _restore(memoryview(encoded.side), encoded.body, ArrayLayout(array.dtype, array.shape))
        norm = np.linalg.norm((array.astype(np.float64) - again.astype(np.float64)).reshape(-1))
        return np.full((1,) * array.ndim, norm)

    def _factors(self, y: NDArray[Any]) -> tuple[Array, Array]:
        """A [M, r] and Q [N, r] by power iteration, orthonormalized at each half step."""
        # Entries near 1: products of the iteration neither overflow nor vanish.
        top = float(np.abs(y).max()) or 1.0
        y = y / np.asarray(top, y.dtype)
        width = min(self.rank + _EXTRA, *y.shape)
        basis = y @ np.random.default_rng(self.seed).standard_normal((y.shape[1], width), np.float64).astype(y.dtype)
        for _ in range(self.power):
            basis = y @ np.linalg.qr(y.T @ np.linalg.qr(basis)[0])[0]
        basis = np.linalg.qr(basis)[0]
        u, s, vt = np.linalg.svd(basis.T @ y, full_matrices=False)
        root = np.sqrt(s[: self.rank] * top).astype(y.dtype)
        return (basis @ u[:, : self.rank]) * root, vt[: self.rank].T * root


def _shrinks(shape: Shape, rank: int) -> bool:
    if len(shape) < 2:
        return False
    m, n = math.prod(shape[:-1]), shape[-1]
    return rank * (m + n) < m * n


def _inner(side: memoryview, layout: ArrayLayout) -> tuple[int, ArrayLayout]:
    expect_floats(layout, "lowrank")
    if len(side) < 2:
        raise WireError("the side data ends before the rank")
    rank = int.from_bytes(side[:2], "little")
    if not rank:
        return 2, layout
    if not _shrinks(layout.shape, rank):
        raise WireError(f"'lowrank' of rank {rank} would not be smaller than an array of shape {list(layout.shape)}")
    return 2, ArrayLayout(layout.dtype, (math.prod(layout.shape[:-1]) + layout.shape[-1], rank))


def _restore(side: memoryview, inner: Array, layout: ArrayLayout) -> Array:
    if not int.from_bytes(side[:2], "little"):
        return inner
    m = math.prod(layout.shape[:-1])
    factors = inner.astype(np.float32) if layout.dtype.itemsize == 2 else inner
    with np.errstate(over="ignore", invalid="ignore"):
        product: Array = factors[:m] @ factors[m:].T  # type: ignore[operator]
        return product.astype(layout.dtype, copy=False).reshape(layout.shape)


LOWRANK = Transform(_inner, _restore)
