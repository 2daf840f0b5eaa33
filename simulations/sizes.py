"""What a message would cost on a channel."""

from __future__ import annotations

from typing import NamedTuple

from ..core.message import Message
from ..wire.frame import PREFIX_BYTES
from ..wire.pack import Packed, pack


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


class Sizer:
    """Sizes of messages; those of the same shapes, whose tensors travel raw, are packed once.

    A raw tensor has the bytes of its shape, and a header those of its numbers' lengths in bits.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], Size] = {}

    def size(self, message: Message) -> Size:
        """The sizes that a channel would record."""
        key = _shape(message)
        if key is None:
            return size_of(pack(message))
        if key not in self._known:
            self._known[key] = size_of(pack(message))
        return self._known[key]


def _shape(message: Message) -> tuple[object, ...] | None:
    """The same for messages of the same sizes; None if the content decides."""
    shape: list[object] = [message.kind, message.round.bit_length(), message.step.bit_length(), message.micro]
    for name, value in message.fields.items():
        if isinstance(value, int):
            shape += [name, value < 0, value.bit_length()]
        elif isinstance(value, float):
            shape.append(name)
        else:
            return None
    for name, tensor in message.tensors.items():
        if tensor.encoding is not None:
            return None
        shape += [name, tensor.array.dtype, tensor.array.shape, tensor.dtype]
    return tuple(shape)
