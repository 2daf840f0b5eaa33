"""Serialization of messages: a protobuf header with the tensor table, and a payload with the tensors' bytes.

The same message always gives the same bytes: the order of the tensors is fixed, and the header is serialized
deterministically. Tensors without side data come first, in descending order of element size, so that each is aligned
without padding; the others follow by name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from ..core.errors import WireError
from ..core.message import Encoded, Message, Scalar, Tensor
from ..proto import frame_pb2 as pb
from .dtypes import DTYPES, lookup, name_of
from .encodings.base import ArrayLayout, EncodeError, to_little_endian
from .encodings.raw import Raw
from .encodings.registry import check_name, decode
from .limits import DEFAULT, Limits

_RAW = Raw()


@dataclass(frozen=True, slots=True)
class Packed:
    """A serialized message.

    Attributes
    ----------
    header : bytes
    payload : tuple[memoryview, ...]
        Parts of the payload in order. **Parts of raw tensors are views of the message's arrays**: do not modify these
        until the payload has been sent and acknowledged.
    dense_bytes, payload_bytes : int
        Bytes of the tensors before encoding, and after it, including side data.
    encoding : str
        For the ledger: the distinct encodings, in the order of the table, joined by ``,``; ``raw`` if there are none.
    """

    header: bytes
    payload: tuple[memoryview, ...]
    dense_bytes: int
    payload_bytes: int
    encoding: str


@dataclass(frozen=True, slots=True)
class Header:
    """A parsed and validated frame header.

    Attributes
    ----------
    parsed : FrameHeader
    layouts : list of ArrayLayout
        Layouts of the decoded tensors.
    """

    parsed: pb.FrameHeader
    layouts: list[ArrayLayout]

    @classmethod
    def read(cls, header: bytes | memoryview, limits: Limits = DEFAULT) -> Header:
        """Parse a header and check everything that does not depend on the payload.

        Raises
        ------
        WireError
            The header violates the format or a limit.
        """
        return _read(header, limits)

    @property
    def key(self) -> str:
        """Key of a published message, empty for all others."""
        return self.parsed.key

    def summary(self) -> Summary:
        """Return the properties of the message that the ledger records."""
        p = self.parsed
        dense = sum(layout.nbytes for layout in self.layouts)
        payload = sum(entry.length for entry in p.tensors)
        return Summary(p.kind, p.round, p.step, p.micro, dense, payload, _used(p))


@dataclass(frozen=True, slots=True)
class Summary:
    """Properties of a message that the ledger records; see :class:`~farshore.core.transfer.Transfer`."""

    kind: str
    round: int
    step: int
    micro: int
    dense_bytes: int
    payload_bytes: int
    encoding: str


def pack(message: Message, limits: Limits = DEFAULT, key: str = "") -> Packed:
    """Serialize a message.

    Parameters
    ----------
    message : Message
    limits : Limits
        Limits of the receiver, checked here too.
    key : str
        Key of a published message; empty for all others.

    Raises
    ------
    EncodeError
        An array cannot be encoded with its encoding.
    WireError
        The message exceeds a limit, or has a value of an unsupported type. Both errors name the kind and the tensor.
    """
    header = _start(message, limits)
    if key:
        _check_text(_where(message.kind), key, limits)
        header.key = key
    dense, rows = 0, []
    for name, tensor in message.tensors.items():
        try:
            layout = _layout(tensor.array.shape, tensor.array.dtype, limits)
            dense += layout.nbytes
            _check_limit("decoded bytes", dense, limits.dense_bytes)
            rows.append((name, tensor, _encode(tensor)))
        except WireError as error:
            raise type(error)(_where(message.kind, name) + error.message, hint=error.hint) from error
    rows.sort(key=lambda row: (-row[2].body.itemsize if not row[2].side else 0, row[0]))
    parts: list[memoryview] = []
    offset = 0
    for name, tensor, encoded in rows:
        header.tensors.append(_entry(name, tensor, encoded, offset))
        offset += len(encoded.side) + encoded.body.nbytes
        parts += [memoryview(encoded.side)] if encoded.side else []
        parts += [encoded.body.reshape(-1).view(np.uint8).data] if encoded.body.nbytes else []
    data = header.SerializeToString(deterministic=True)
    try:
        _check_limit("payload bytes", offset, limits.payload_bytes)
        _check_limit("header bytes", len(data), limits.header_bytes)
    except WireError as error:
        raise WireError(_where(message.kind) + error.message) from error
    return Packed(data, tuple(parts), dense, offset, _used(header))


def unpack(header: bytes | memoryview | Header, payload: memoryview, limits: Limits = DEFAULT) -> Message:
    """Deserialize a message.

    Parameters
    ----------
    header : bytes or Header
        Serialized, or the result of :meth:`Header.read`.
    payload : memoryview
        Contiguous bytes. Raw tensors are read-only views of it and keep it alive.
    limits : Limits

    Returns
    -------
    Message
        With decoded tensors; ``dtype`` is set for bf16 only.

    Raises
    ------
    WireError
        Header or payload violate the format or a limit. Every length, offset and shape is checked before memory is
        allocated for it.
    """
    read = header if isinstance(header, Header) else _read(header, limits)
    parsed, layouts = read.parsed, read.layouts
    payload = payload if payload.format == "B" and payload.ndim == 1 else payload.cast("B")
    end = parsed.tensors[-1].offset + parsed.tensors[-1].length if parsed.tensors else 0
    if end != len(payload):
        raise WireError(f"{_where(parsed.kind)}the payload has {len(payload)} bytes, the tensor table describes {end}")
    tensors = {}
    for entry, layout in zip(parsed.tensors, layouts, strict=True):
        side = payload[entry.offset : entry.offset + entry.side]
        body = payload[entry.offset + entry.side : entry.offset + entry.length]
        try:
            array = decode(entry.encoding or "raw", side, body, layout)
        except MemoryError:
            where = _where(parsed.kind, entry.name)
            raise WireError(f"{where}there is no memory for its {layout.nbytes} bytes") from None
        except WireError as error:
            raise WireError(_where(parsed.kind, entry.name) + error.message, hint=error.hint) from error
        tensors[entry.name] = Tensor(array, dtype="bf16" if entry.dtype == pb.BF16 else None)
    fields = {key: _value(parsed.kind, key, scalar) for key, scalar in sorted(parsed.fields.items())}
    return Message(parsed.kind, parsed.round, parsed.step, parsed.micro, tensors, fields)


def inspect(header: bytes | memoryview, limits: Limits = DEFAULT) -> Summary:
    """Return the properties that the ledger records, without the payload; raises the errors of :func:`unpack`."""
    return _read(header, limits).summary()


def _start(message: Message, limits: Limits) -> pb.FrameHeader:
    """Return the header without the tensor table."""
    where = _where(message.kind)
    if not message.kind:
        raise WireError("a message needs a kind")
    if len(message.tensors) > limits.tensors or len(message.fields) > limits.fields:
        raise WireError(
            f"{where}{len(message.tensors)} tensors and {len(message.fields)} fields "
            f"exceed the limits of {limits.tensors} and {limits.fields}"
        )
    for name in (message.kind, *message.tensors, *message.fields):
        _check_text(where, name, limits)
    try:
        header = pb.FrameHeader(kind=message.kind, round=message.round, step=message.step, micro=message.micro)
    except (ValueError, TypeError) as error:
        raise WireError(
            f"{where}round {message.round}, step {message.step}, micro {message.micro}: "
            "must be non-negative integers (micro below 2^32, the others below 2^64)"
        ) from error
    for key, value in message.fields.items():
        header.fields[key].CopyFrom(_scalar(where, key, value))
    return header


def _encode(tensor: Tensor) -> Encoded:
    """Encode a tensor with a contiguous, little-endian body."""
    name_of(tensor.array.dtype, tensor.dtype)
    if tensor.encoding is not None:
        check_name(tensor.encoding.name)
    array = tensor.array
    if array.dtype.byteorder == ">" or (array.dtype.byteorder == "=" and np.little_endian is False):
        array = to_little_endian(array)
    encoded = (tensor.encoding or _RAW).encode(array)
    return Encoded(encoded.side, to_little_endian(encoded.body))


def _entry(name: str, tensor: Tensor, encoded: Encoded, offset: int) -> pb.TensorEntry:
    encoding = tensor.encoding.name if tensor.encoding is not None else "raw"
    return pb.TensorEntry(
        name=name,
        dtype=DTYPES[name_of(tensor.array.dtype, tensor.dtype)][0],  # type: ignore[arg-type]
        shape=tensor.array.shape,
        encoding="" if encoding == "raw" else encoding,
        offset=offset,
        length=len(encoded.side) + encoded.body.nbytes,
        side=len(encoded.side),
    )


def _read(header: bytes | memoryview, limits: Limits) -> Header:
    _check_limit("header bytes", len(header), limits.header_bytes)
    try:
        parsed = pb.FrameHeader.FromString(bytes(header))
    except DecodeError as error:
        raise WireError("the header of a frame cannot be parsed") from error
    if not parsed.kind:
        raise WireError("the header of a frame has no kind")
    where = _where(parsed.kind[:64])
    for what, count, limit in (
        ("tensors", len(parsed.tensors), limits.tensors),
        ("fields", len(parsed.fields), limits.fields),
    ):
        if count > limit:
            raise WireError(f"{where}{count} {what} exceed the limit of {limit}")
    for name in (parsed.kind, *parsed.fields, *((parsed.key,) if parsed.key else ())):
        _check_text(where, name, limits)
    return Header(parsed, _check_table(parsed, limits))


def _check_table(parsed: pb.FrameHeader, limits: Limits) -> list[ArrayLayout]:
    """Check the tensor table and return the layouts of the decoded tensors."""
    end = dense = 0
    seen: set[str] = set()
    layouts = []
    for entry in parsed.tensors:
        try:
            _check_text("", entry.name, limits)
            _check_text("", entry.encoding or "raw", limits)
            if entry.name in seen:
                raise WireError("duplicate name in the tensor table")
            seen.add(entry.name)
            check_name(entry.encoding or "raw")
            layout = _layout(tuple(entry.shape), lookup(entry.dtype)[1], limits)
            dense += layout.nbytes
            _check_limit("decoded bytes", dense, limits.dense_bytes)
            _check_range(entry, end, limits)
        except WireError as error:
            raise WireError(_where(parsed.kind, entry.name[:64]) + error.message, hint=error.hint) from error
        end += entry.length
        layouts.append(layout)
    return layouts


def _check_range(entry: pb.TensorEntry, end: int, limits: Limits) -> None:
    """Check that a tensor begins where the previous one ends."""
    if entry.side > entry.length:
        raise WireError(f"{entry.side} bytes of side data do not fit in {entry.length} bytes")
    if entry.offset < end:
        raise WireError(f"it starts at byte {entry.offset} and overlaps the previous tensor, which ends at {end}")
    if entry.offset > end:
        raise WireError(f"it starts at byte {entry.offset} and leaves a gap after {end}")
    _check_limit("payload bytes", entry.offset + entry.length, limits.payload_bytes)


def _layout(shape: tuple[int, ...], dtype: np.dtype[Any], limits: Limits) -> ArrayLayout:
    """Return the layout after checking the limits. Axes of length 0 count as 1, so that they cannot hide a huge one."""
    if len(shape) > limits.rank:
        raise WireError(f"{len(shape)} axes exceed the limit of {limits.rank}")
    nbytes = math.prod(max(1, int(n)) for n in shape) * dtype.itemsize
    if nbytes > limits.dense_bytes:
        raise WireError(f"an array of shape {list(shape)} exceeds the limit of {limits.dense_bytes} bytes")
    return ArrayLayout(dtype, tuple(int(n) for n in shape))


def _check_limit(what: str, count: int, limit: int) -> None:
    if count > limit:
        raise WireError(f"{count} {what} exceed the limit of {limit}")


def _check_text(where: str, text: str, limits: Limits) -> None:
    if not text:
        raise WireError(f"{where}a name is empty")
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise WireError(f"{where}a name is not valid Unicode") from error
    if size > limits.name_bytes:
        raise WireError(f"{where}the name '{text[:32]}…' has {size} bytes, the limit is {limits.name_bytes}")


def _used(header: pb.FrameHeader) -> str:
    names = dict.fromkeys(entry.encoding or "raw" for entry in header.tensors)
    return ",".join(names) or "raw"


def _where(kind: str, tensor: str | None = None) -> str:
    return f"'{kind}' message: " if tensor is None else f"'{kind}' message, tensor '{tensor}': "


def _scalar(where: str, key: str, value: Scalar | np.generic) -> pb.Scalar:
    if isinstance(value, np.generic):
        value = value.item()
    try:
        match value:
            case bool():
                return pb.Scalar(flag=value)
            case int():
                return pb.Scalar(integer=value)
            case float():
                return pb.Scalar(real=value)
            case str():
                return pb.Scalar(text=value)
            case bytes():
                return pb.Scalar(blob=value)
    except (ValueError, UnicodeEncodeError) as error:
        raise WireError(f"{where}field '{key}' has the invalid value {str(value)[:40]}: {error}") from error
    raise WireError(f"{where}field '{key}' is a {type(value).__name__}; expected bool, int, float, str or bytes")


def _value(kind: str, key: str, scalar: pb.Scalar) -> Scalar:
    which = scalar.WhichOneof("value")
    if which is None:
        raise WireError(f"{_where(kind)}field '{key[:64]}' has no value")
    value: Scalar = getattr(scalar, which)
    return value


__all__ = ["EncodeError", "Header", "Packed", "Summary", "inspect", "pack", "unpack"]
