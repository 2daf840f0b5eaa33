"""The fixed-size prefix of every frame and its checksum. Everything is little-endian.

=============  =====  ==========================================================================
field          bytes  meaning
=============  =====  ==========================================================================
magic          4      ``FSH1``: the format and its version
type           1      :class:`FrameType`
reserved       1      0
epoch          2      of the run's programs; frames of different epochs never mix
header length  4      bytes of protobuf header after the prefix
payload length 8      bytes of payload after the header
sequence       8      number of a data or skip frame, from 1; 0 in all other frames
acknowledged   8      highest numbered frame that the sender's program has taken
checksum       8      XXH3-64 of the prefix up to here, the header and the payload
=============  =====  ==========================================================================
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import xxhash

from ..core.errors import WireError
from .limits import DEFAULT, Limits

MAGIC = b"FSH1"
_FIXED = struct.Struct("<4sBBHIQQQ")
_TAIL = struct.Struct("<Q")
PREFIX_BYTES = _FIXED.size + _TAIL.size
#: The part of the prefix that the checksum covers.
CHECKED_BYTES = _FIXED.size

Buffer = bytes | bytearray | memoryview


class FrameType(IntEnum):
    """Type of a frame. Only data frames reach programs; a skip frame stands for a superseded data frame."""

    DATA = 1
    ACK = 2
    HEARTBEAT = 3
    HELLO = 4
    BYE = 5
    SKIP = 6


#: Types that carry a sequence number.
NUMBERED = frozenset({FrameType.DATA, FrameType.SKIP})


@dataclass(frozen=True, slots=True)
class Prefix:
    """A frame's prefix; see the module for the fields."""

    type: FrameType
    epoch: int
    header_bytes: int
    payload_bytes: int
    sequence: int
    acknowledged: int
    checksum: int

    @property
    def body_bytes(self) -> int:
        """Bytes that follow the prefix."""
        return self.header_bytes + self.payload_bytes

    @property
    def frame_bytes(self) -> int:
        """Bytes of the whole frame."""
        return PREFIX_BYTES + self.body_bytes


def make_prefix(
    type: FrameType,
    epoch: int,
    sequence: int,
    acknowledged: int,
    header: bytes = b"",
    payload: Sequence[Buffer] = (),
) -> bytes:
    """The prefix of a frame, checksum included.

    Parameters
    ----------
    type, epoch, sequence, acknowledged
        As in the prefix.
    header : bytes
    payload : sequence of buffers
        Sent one after another.
    """
    size = sum(memoryview(part).nbytes for part in payload)
    checked = _FIXED.pack(MAGIC, type, 0, epoch, len(header), size, sequence, acknowledged)
    digest = xxhash.xxh3_64(checked)
    digest.update(header)
    for part in payload:
        digest.update(part)
    return checked + _TAIL.pack(digest.intdigest())


def read_prefix(data: Buffer, limits: Limits = DEFAULT) -> Prefix:
    """Parse and check a prefix; nothing is allocated from what it says.

    Raises
    ------
    WireError
        Too short, not a frame of this version, an unknown type, or lengths beyond ``limits``.
    """
    if len(data) < PREFIX_BYTES:
        raise WireError(f"a frame of {len(data)} bytes is shorter than its prefix ({PREFIX_BYTES})")
    magic, kind, reserved, epoch, header, payload, sequence, acknowledged = _FIXED.unpack_from(data)
    (checksum,) = _TAIL.unpack_from(data, _FIXED.size)
    if magic != MAGIC:
        raise WireError(
            f"these bytes are no frame of this version (they begin with {bytes(magic)!r})",
            hint="install the same farshore on both ends",
        )
    if reserved or kind not in FrameType._value2member_map_:
        raise WireError(f"a frame has the unknown type {kind}.{reserved}")
    if header > limits.header_bytes or payload > limits.payload_bytes:
        raise WireError(
            f"a frame announces {header} + {payload} bytes, more than the limits {limits.header_bytes} + "
            f"{limits.payload_bytes}"
        )
    if (kind in NUMBERED) != (sequence > 0):
        raise WireError(f"a frame of type {kind} has the sequence number {sequence}")
    if kind != FrameType.DATA and (payload or header > 1024):
        raise WireError(f"a frame of type {kind} announces a payload of {header} + {payload} bytes")
    return Prefix(FrameType(kind), epoch, header, payload, sequence, acknowledged, checksum)
