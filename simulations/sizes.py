"""Sizes that a message has on a channel."""

from __future__ import annotations

from typing import NamedTuple

from ..core.message import Message
from ..wire.frame import PREFIX_BYTES
from ..wire.pack import Packed, pack


class Size(NamedTuple):
    """Sizes of a frame in bytes, as in the ledger, and the encodings in it.

    Attributes
    ----------
    dense : int
        Tensors at full precision.
    payload : int
        Tensors as encoded.
    frame : int
        The whole frame with prefix and header.
    encoding : str
    """

    dense: int
    payload: int
    frame: int
    encoding: str


def size_of(packed: Packed) -> Size:
    """Return the sizes that a channel would record for a packed message."""
    frame = PREFIX_BYTES + len(packed.header) + packed.payload_bytes
    return Size(packed.dense_bytes, packed.payload_bytes, frame, packed.encoding)


class Sizer:
    """Computes the sizes of messages, and caches them for messages whose size does not depend on their values.

    The size of an unencoded tensor depends on its shape and dtype, that of a header on the bit lengths of its numbers.
    """

    def __init__(self) -> None:
        self._cache: dict[tuple[object, ...], Size] = {}

    def size(self, message: Message) -> Size:
        """Return the sizes that a channel would record for a message."""
        key = _cache_key(message)
        if key is None:
            return size_of(pack(message))
        if key not in self._cache:
            self._cache[key] = size_of(pack(message))
        return self._cache[key]


def _cache_key(message: Message) -> tuple[object, ...] | None:
    """Return a key that is equal for messages of equal size; None if the size depends on the values."""
    key_parts: list[object] = [message.kind, message.round.bit_length(), message.step.bit_length(), message.micro]
    for name, value in message.fields.items():
        if isinstance(value, int):
            key_parts += [name, value < 0, value.bit_length()]
        elif isinstance(value, float):
            key_parts.append(name)
        else:
            return None
    for name, tensor in message.tensors.items():
        if tensor.encoding is not None:
            return None
        key_parts += [name, tensor.array.dtype, tensor.array.shape, tensor.dtype]
    return tuple(key_parts)
