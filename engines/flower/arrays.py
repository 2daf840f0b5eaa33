"""Flower's messages as ours: arrays are lifted into the tensor table, so encodings apply and dense bytes are exact.

The rest, a message whose arrays are empty, travels in the header; the receiver puts the arrays back where they were.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from ...core.errors import WireError
from ...core.message import Encoding, Message, Tensor
from ...wire.dtypes import name_of
from .compat import Array, ArrayRecord, RecordDict, SType, message_bytes, message_from, with_content
from .compat import Message as FlowerMessage

#: Longest rest that travels in the header; a longer one (somebody's bytes in a ConfigRecord) is a tensor of its own.
_HEADER_BYTES = 256 << 10
_REST = "message"
#: Most digits of a round: counters in a frame's header are bounded.
_DIGITS = 9


def round_of(message: FlowerMessage) -> int:
    """The round that a message says it is of, as its group or in what strategies tell clients; 0 = none."""
    group = message.metadata.group_id
    if group.isdecimal() and len(group) < _DIGITS:
        return int(group)
    records = message.content.config_records.values() if message.has_content() else ()
    told = [record["server-round"] for record in records if "server-round" in record]
    return told[0] if told and isinstance(told[0], int) and 0 <= told[0] < 10**_DIGITS else 0


def to_frame(message: FlowerMessage, number: int, encoding: Encoding | None = None) -> Message:
    """A message to send.

    Parameters
    ----------
    message : FlowerMessage
        Left as it is.
    number : int
        Its round, for the ledger.
    encoding : Encoding, optional
        Of its float32 arrays.
    """
    tensors: dict[str, Tensor] = {}
    content = RecordDict() if message.has_content() else None
    if content is not None:
        for name, record in message.content.items():
            content[name] = _lifted(record, tensors, encoding) if isinstance(record, ArrayRecord) else record
    rest = message_bytes(with_content(message, content))
    fields: dict[str, Any] = {_REST: rest}
    if len(rest) > _HEADER_BYTES:
        fields = {}
        tensors[_REST] = Tensor(np.frombuffer(rest, np.uint8))
    return Message(message.metadata.message_type.partition(".")[0], round=number, tensors=tensors, fields=fields)


def from_frame(frame: Message) -> FlowerMessage:
    """A message that arrived.

    Raises
    ------
    WireError
        It is none.
    """
    rest = frame.fields.get(_REST)
    if _REST in frame.tensors:
        rest = frame.array(_REST).tobytes()
    if not isinstance(rest, bytes):
        raise WireError(f"a '{frame.kind}' frame carries no message of a Flower app")
    try:
        message = message_from(rest)
        arrays = _arrays(message)
        for index, (record, key, empty) in enumerate(arrays):
            record[key] = _put_back(frame, index, empty)
    except (DecodeError, ValueError, TypeError, KeyError) as error:
        raise WireError(f"a '{frame.kind}' frame holds no message of a Flower app: {error}") from error
    if len(arrays) != len(frame.tensors) - (_REST in frame.tensors):
        raise WireError(f"a '{frame.kind}' frame holds other arrays than its message names")
    return message


def _arrays(message: FlowerMessage) -> list[tuple[ArrayRecord, str, Array]]:
    records: Iterator[ArrayRecord] = iter(())
    if message.has_content():
        records = (record for record in message.content.values() if isinstance(record, ArrayRecord))
    return [(record, key, array) for record in records for key, array in record.items()]


def _lifted(record: ArrayRecord, tensors: dict[str, Tensor], encoding: Encoding | None) -> ArrayRecord:
    bare = ArrayRecord()
    for key, array in record.items():
        values = _values(array)
        if values is None:
            tensors[f"blob {len(tensors)}"] = Tensor(np.frombuffer(array.data, np.uint8))
        else:
            tensors[f"array {len(tensors)}"] = Tensor(values, encoding if values.dtype == np.float32 else None)
        bare[key] = Array(array.dtype, array.shape, array.stype, b"")
    return bare


def _values(array: Array) -> NDArray[Any] | None:
    """The numbers of an array; None where its bytes are not NumPy's, or hold what does not travel as numbers."""
    if array.stype != SType.NUMPY:
        return None
    try:
        values = np.load(io.BytesIO(array.data), allow_pickle=False)
        name_of(values.dtype)
    except (ValueError, EOFError, OSError, WireError):
        return None
    return values if values.dtype.byteorder != ">" and values.ndim <= _RANK else None


#: Most axes of a tensor of ours.
_RANK = 8


def _put_back(frame: Message, index: int, empty: Array) -> Array:
    if f"blob {index}" in frame.tensors:
        return Array(empty.dtype, empty.shape, empty.stype, frame.array(f"blob {index}").tobytes())
    data = io.BytesIO()
    np.save(data, frame.array(f"array {index}"), allow_pickle=False)
    # What the message says of the array stays as it is: apps of the older API leave it empty.
    return Array(empty.dtype, empty.shape, empty.stype, data.getvalue())
