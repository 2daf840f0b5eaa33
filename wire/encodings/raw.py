"""``raw``: the unmodified bytes of an array."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike

from ...core.errors import WireError
from ...core.message import Array, Encoded
from .base import ArrayLayout, Bound, Shape, expect_bytes, to_little_endian, zero_bound


@dataclass(frozen=True, slots=True)
class Raw:
    """Lossless, for all dtypes. Does not copy contiguous arrays; decoding returns a read-only view of the payload."""

    @property
    def name(self) -> str:
        return "raw"

    @property
    def lossy(self) -> bool:
        return False

    def encode(self, array: Array) -> Encoded:
        """Use the array as the body."""
        return Encoded(b"", to_little_endian(array))

    def size(self, shape: Shape, dtype: DTypeLike = np.float32) -> int:
        """``prod(shape) · itemsize``."""
        return math.prod(shape) * np.dtype(dtype).itemsize

    def error_bound(self, array: Array) -> Bound:
        """Zero."""
        return zero_bound(array)


def decode_raw(side: memoryview, body: memoryview, layout: ArrayLayout) -> Array:
    """View ``body`` as an array; see :data:`~farshore.wire.encodings.base.Leaf`."""
    expect_bytes("side data of 'raw'", len(side), 0)
    expect_bytes("the body of 'raw'", len(body), layout.nbytes)
    if not layout.size:
        empty: Array = np.empty(layout.shape, layout.dtype)
        empty.flags.writeable = False
        return empty
    array: Array = np.frombuffer(body.toreadonly(), layout.dtype).reshape(layout.shape)
    # NumPy requires that boolean bytes are 0 or 1.
    if layout.dtype.kind == "b" and array.view(np.uint8).max() > 1:
        raise WireError("a boolean is neither 0 nor 1")
    return array
