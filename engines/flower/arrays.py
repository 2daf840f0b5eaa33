"""Converts Flower messages to farshore frames and back.

Arrays become tensors of the frame, so that encodings apply and the ledger has exact dense bytes. The remaining message,
with empty arrays, goes into the frame's header; the receiver restores the arrays.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from ...core.control import fields_of, read_fields
from ...core.errors import WireError
from ...core.message import Encoding, Message, Tensor
from ...wire.dtypes import name_of
from .compat import Array, ArrayRecord, RecordDict, SType, message_bytes, message_from_bytes, with_content
from .compat import Message as FlowerMessage
from .protocol import AppMessage

#: Longest message without arrays that is put into the header; a longer one becomes a tensor.
_HEADER_BYTES = 256 << 10
#: Name of the tensor with the message without arrays, where it is not a field.
_MESSAGE = "message"
#: Digits of the largest round index; counters in a frame's header are bounded.
_DIGITS = 9
#: Most dimensions of a tensor.
_MAX_DIMENSIONS = 8


def round_of(message: FlowerMessage) -> int:
    """The round of a message, from its group id or the ``server-round`` of its configuration; 0 if it has none."""
    group = message.metadata.group_id
    if group.isdecimal() and len(group) < _DIGITS:
        return int(group)
    records = message.content.config_records.values() if message.has_content() else ()
    rounds = [record["server-round"] for record in records if "server-round" in record]
    return rounds[0] if rounds and isinstance(rounds[0], int) and 0 <= rounds[0] < 10**_DIGITS else 0


def to_frame(message: FlowerMessage, round_index: int, encoding: Encoding | None = None) -> Message:
    """Convert a Flower message to a frame.

    Parameters
    ----------
    message : FlowerMessage
        Not modified.
    round_index : int
        Round of the message, for the ledger.
    encoding : Encoding, optional
        Encoding of its float32 arrays.
    """
    tensors: dict[str, Tensor] = {}
    content = RecordDict() if message.has_content() else None
    if content is not None:
        for name, record in message.content.items():
            content[name] = _extract(record, tensors, encoding) if isinstance(record, ArrayRecord) else record
    encoded = message_bytes(with_content(message, content))
    header = AppMessage(encoded)
    if len(encoded) > _HEADER_BYTES:
        header = AppMessage()
        tensors[_MESSAGE] = Tensor(np.frombuffer(encoded, np.uint8))
    kind = message.metadata.message_type.partition(".")[0]
    return Message(kind, round=round_index, tensors=tensors, fields=fields_of(header))


def from_frame(frame: Message, peer: str) -> FlowerMessage:
    """Convert a frame that ``peer`` sent to a Flower message.

    Raises
    ------
    WireError
        The frame contains no valid message.
    """
    encoded = read_fields(AppMessage, frame, peer).message
    if _MESSAGE in frame.tensors:
        encoded = frame.array(_MESSAGE).tobytes()
    if encoded is None:
        raise WireError(f"{peer}: a '{frame.kind}' frame contains no message of a Flower app")
    try:
        message = message_from_bytes(encoded)
        arrays = _arrays(message)
        for index, (record, key, empty) in enumerate(arrays):
            record[key] = _restore(frame, index, empty)
    except (DecodeError, ValueError, TypeError, KeyError) as error:
        raise WireError(
            f"{peer}: a '{frame.kind}' frame contains an invalid message of a Flower app: {error}"
        ) from error
    if len(arrays) != len(frame.tensors) - (_MESSAGE in frame.tensors):
        raise WireError(f"{peer}: a '{frame.kind}' frame has other arrays than its message names")
    return message


def _arrays(message: FlowerMessage) -> list[tuple[ArrayRecord, str, Array]]:
    records: Iterator[ArrayRecord] = iter(())
    if message.has_content():
        records = (record for record in message.content.values() if isinstance(record, ArrayRecord))
    return [(record, key, array) for record in records for key, array in record.items()]


def _extract(record: ArrayRecord, tensors: dict[str, Tensor], encoding: Encoding | None) -> ArrayRecord:
    """Add the arrays of ``record`` to ``tensors``; returns the record with empty arrays."""
    empty = ArrayRecord()
    for key, array in record.items():
        values = _values(array)
        if values is None:
            tensors[f"blob {len(tensors)}"] = Tensor(np.frombuffer(array.data, np.uint8))
        else:
            tensors[f"array {len(tensors)}"] = Tensor(values, encoding if values.dtype == np.float32 else None)
        empty[key] = Array(array.dtype, array.shape, array.stype, b"")
    return empty


def _values(array: Array) -> NDArray[Any] | None:
    """The array as NumPy, or None if it is not serialized by NumPy or its dtype is not supported on the wire."""
    if array.stype != SType.NUMPY:
        return None
    try:
        values = np.load(io.BytesIO(array.data), allow_pickle=False)
        name_of(values.dtype)
    except (ValueError, EOFError, OSError, WireError):
        return None
    return values if values.dtype.byteorder != ">" and values.ndim <= _MAX_DIMENSIONS else None


def _restore(frame: Message, index: int, empty: Array) -> Array:
    if f"blob {index}" in frame.tensors:
        return Array(empty.dtype, empty.shape, empty.stype, frame.array(f"blob {index}").tobytes())
    data = io.BytesIO()
    np.save(data, frame.array(f"array {index}"), allow_pickle=False)
    # dtype, shape and stype remain those of the message: apps of the legacy API leave them empty.
    return Array(empty.dtype, empty.shape, empty.stype, data.getvalue())
