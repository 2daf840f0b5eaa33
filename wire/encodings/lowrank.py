"""``lowrank``: approximates a matrix by the product of two thin matrices."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ...core.errors import ConfigError, WireError
from ...core.message import Array, Encoded
from .base import ArrayLayout, Bound, EncodeError, Shape, Transform, expect_floats, require_floats

#: Additional columns of the subspace iteration, which improve the accuracy of the first ``rank`` (Halko et al. 2011).
_OVERSAMPLING = 6


@dataclass(frozen=True, slots=True)
class LowRank:
    """``Y [M, N] ≈ A Qᵀ``: sends A [M, r] and Q [N, r], concatenated to a body [M + N, r].

    A and Q are both scaled by the square roots of the singular values, so that their values have similar ranges for a
    subsequent quantizer (``lowrank|int8``). All axes except the last are flattened to M. If r(M + N) is not less than
    M·N, the array is not factorized. Side data: the rank in two bytes, 0 if the array is not factorized.

    Error: that of the best rank-r approximation, (Σ_{i>r} σ_i²)^½ in the Frobenius norm, times at most 1.05 if the
    spectrum decays; :meth:`error_bound` measures it for a given array.

    Parameters
    ----------
    rank : int
        r, 1 to 65,535.
    power : int
        Number of power iterations; increase it for flat spectra.
    seed : int
        For the random initial subspace; the same array always gives the same bytes.
    """

    rank: int
    power: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.rank <= 0xFFFF:
            raise ConfigError(f"lowrank: the rank must be 1 to 65535, not {self.rank}")

    @property
    def name(self) -> str:
        return "lowrank"

    @property
    def lossy(self) -> bool:
        return True

    def encode(self, array: Array) -> Encoded:
        """Factorize the array.

        Raises
        ------
        EncodeError
            The array is not floating point, or a value is not finite.
        """
        require_floats(array, self.name)
        if not self.shrinks(array.shape):
            return Encoded(b"\0\0", array)
        y = array.reshape(-1, array.shape[-1]).astype(
            np.float64 if array.dtype.itemsize == 8 else np.float32, copy=False
        )
        if not np.isfinite(y).all():
            raise EncodeError("'lowrank' cannot encode non-finite values")
        body = np.concatenate(self._factors(y))
        with np.errstate(over="ignore"):
            body = body.astype(array.dtype, copy=False)
        if not np.isfinite(body).all():
            raise EncodeError(f"'lowrank': the factors exceed the range of {array.dtype}")
        return Encoded(self.rank.to_bytes(2, "little"), body)

    def size(self, shape: Shape, dtype: DTypeLike = np.float32) -> int:
        """``2 + r(M + N) · itemsize``, or ``2 + MN · itemsize`` if that is less."""
        return self.side_size(shape) + math.prod(self.inner_shape(shape)) * np.dtype(dtype).itemsize

    def side_size(self, shape: Shape) -> int:
        """Bytes of the rank, for any shape."""
        return 2

    def shrinks(self, shape: Shape) -> bool:
        """Whether the factors are smaller than an array of this shape."""
        return _shrinks(shape, self.rank)

    def inner_shape(self, shape: Shape) -> tuple[int, ...]:
        """Shape of the body."""
        return (math.prod(shape[:-1]) + shape[-1], self.rank) if self.shrinks(shape) else tuple(shape)

    def error_bound(self, array: Array) -> Bound:
        """The Frobenius norm of the residual of this array, which bounds the error of each element."""
        encoded = self.encode(array)
        decoded = _restore(memoryview(encoded.side), encoded.body, ArrayLayout(array.dtype, array.shape))
        norm = np.linalg.norm((array.astype(np.float64) - decoded.astype(np.float64)).reshape(-1))
        return np.full((1,) * array.ndim, norm)

    def _factors(self, y: NDArray[Any]) -> tuple[Array, Array]:
        """Return A [M, r] and Q [N, r], by power iteration with orthonormalization after each product."""
        # Scaled to a maximum of 1, so that the products neither overflow nor underflow.
        top = float(np.abs(y).max()) or 1.0
        y = y / np.asarray(top, y.dtype)
        width = min(self.rank + _OVERSAMPLING, *y.shape)
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
        raise WireError("the side data end before the rank")
    rank = int.from_bytes(side[:2], "little")
    if not rank:
        return 2, layout
    if not _shrinks(layout.shape, rank):
        raise WireError(f"'lowrank' of rank {rank} does not shrink an array of shape {list(layout.shape)}")
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
