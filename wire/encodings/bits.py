"""``bits``: labels and masks, with a fixed number of bits per element."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike

from ...core.errors import ConfigError, WireError
from ...core.message import Array, Encoded
from .base import ArrayLayout, Bound, EncodeError, Shape, expect_bytes, zero_bound
from .bitpack import pack_bits, packed_bytes, unpack_bits


@dataclass(frozen=True, slots=True)
class Bits:
    """Encodes non-negative integers below ``2**width``, or booleans. Lossless.

    Side data: the width, in one byte.

    Parameters
    ----------
    width : int
        Bits per element, 1 to 32.
    """

    width: int

    def __post_init__(self) -> None:
        if not 1 <= self.width <= 32:
            raise ConfigError(f"bits: the width must be 1 to 32, not {self.width}")

    @property
    def name(self) -> str:
        return "bits"

    @property
    def lossy(self) -> bool:
        return False

    def encode(self, array: Array) -> Encoded:
        """Pack the array.

        Raises
        ------
        EncodeError
            The array is not of integers or booleans, or a value is outside ``[0, 2**width)``.
        """
        if array.dtype.kind not in "biu":
            raise EncodeError(f"'bits' encodes integers and booleans, not {array.dtype}")
        if array.size and array.dtype.kind != "b" and (int(array.min()) < 0 or int(array.max()) >> self.width):
            raise EncodeError(
                f"'bits' of width {self.width} encodes 0 to {2**self.width - 1}, "
                f"the array has values from {int(array.min())} to {int(array.max())}"
            )
        return Encoded(bytes([self.width]), pack_bits(array, self.width))

    def size(self, shape: Shape, dtype: DTypeLike = np.float32) -> int:
        """``1 + ⌈prod(shape) · width / 8⌉``."""
        return 1 + packed_bytes(math.prod(shape), self.width)

    def error_bound(self, array: Array) -> Bound:
        """Zero."""
        return zero_bound(array)


def decode_bits(side: memoryview, body: memoryview, layout: ArrayLayout) -> Array:
    """Decode ``bits`` to the layout's dtype."""
    expect_bytes("side data of 'bits'", len(side), 1)
    width, kind = side[0], layout.dtype.kind
    max_width = {"b": 1, "u": layout.dtype.itemsize * 8, "i": layout.dtype.itemsize * 8 - 1}.get(kind)
    if max_width is None:
        raise WireError(f"'bits' encodes integers and booleans, not {layout.dtype}")
    if not 1 <= width <= min(max_width, 32):
        raise WireError(f"'bits' of width {width} does not fit {layout.dtype}")
    expect_bytes("the body of 'bits'", len(body), packed_bytes(layout.size, width))
    return unpack_bits(body, layout.size, width, layout.dtype).reshape(layout.shape)
