"""Arrays that are encoded in advance: to send them to several receivers, or to know the decoded values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...core.message import Array, Encoded, Encoding, Tensor
from .base import ArrayLayout, to_little_endian
from .registry import decode


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """An encoding that returns an array encoded in advance.

    Attributes
    ----------
    name : str
    lossy : bool
        As for the encoding that was used.
    encoded : Encoded
    """

    name: str
    lossy: bool
    encoded: Encoded

    def encode(self, array: Array) -> Encoded:
        """Return the encoded array; ignores ``array``."""
        return self.encoded

    def decode(self, array: Array) -> Array:
        """Return the decoded values; ``array`` gives their dtype and shape."""
        body = self.encoded.body.reshape(-1).view(np.uint8).data
        return decode(self.name, memoryview(self.encoded.side), body, ArrayLayout(array.dtype, array.shape))


def prepare(array: Array, encoding: Encoding) -> Tensor:
    """Encode an array once, to be sent any number of times; raises the errors of the encoding."""
    encoded = encoding.encode(array)
    return Tensor(array, Prepared(encoding.name, encoding.lossy, Encoded(encoded.side, to_little_endian(encoded.body))))
