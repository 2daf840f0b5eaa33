"""What a message would cost on a channel."""

from __future__ import annotations

from typing import NamedTuple

from ..wire.frame import PREFIX_BYTES
from ..wire.pack import Packed


class Size(NamedTuple):
    """The ledger's three sizes of a frame, and the encodings in it."""

    dense: int
    payload: int
    frame: int
    encoding: str


def size_of(packed: Packed) -> Size:
    """The sizes that a channel would record."""
    frame = PREFIX_BYTES + len(packed.header) + packed.payload_bytes
    return Size(packed.dense_bytes, packed.payload_bytes, frame, packed.encoding)
