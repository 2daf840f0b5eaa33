"""An array that was encoded beforehand: for many receivers, or because the sender needs to know what will arrive."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...core.message import Array, Encoded, Encoding, Tensor
from .base import ArrayLayout, little
from .registry import decode


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """Stands in for the encoding that made ``encoded``; the array it is given is not looked at."""

    name: str
    lossy: bool
    encoded: Encoded

    def encode(self, array: Array) -> Encoded:
        """What was made beforehand."""
        return self.encoded

    def decode(self, array: Array) -> Array:
        """What arrives of ``array``, the one that was encoded."""
        body = self.encoded.body.reshape(-1).view(np.uint8).data
        return decode(self.name, memoryview(self.encoded.side), body, ArrayLayout(array.dtype, array.shape))


def prepare(array: Array, encoding: Encoding) -> Tensor:
    """The array, ready to be sent any number of times; raises what the encoding raises."""
    encoded = encoding.encode(array)
    return Tensor(array, Prepared(encoding.name, encoding.lossy, Encoded(encoded.side, little(encoded.body))))
