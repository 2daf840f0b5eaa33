"""The fixed-size prefix of every frame, including the checksum. All integers are little-endian.

=============  =====  ==========================================================================
field          bytes  meaning
=============  =====  ==========================================================================
magic          4      ``FSH1``: the format and its version
type           1      :class:`FrameType`
reserved       1      0
epoch          2      restart epoch of the run's programs; frames of different epochs never mix
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
#: Length of the part of the prefix that the checksum covers.
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
    """The prefix of a frame; the module docstring describes the fields."""

    type: FrameType
    epoch: int
    header_bytes: int
    payload_bytes: int
    sequence: int
    acknowledged: int
    checksum: int

    @property
    def body_bytes(self) -> int:
        """Bytes of header and payload."""
        return self.header_bytes + self.payload_bytes

    @property
    def frame_bytes(self) -> int:
        """Bytes of the frame, including the prefix."""
        return PREFIX_BYTES + self.body_bytes


def make_prefix(
    type: FrameType,
    epoch: int,
    sequence: int,
    acknowledged: int,
    header: bytes = b"",
    payload: Sequence[Buffer] = (),
) -> bytes:
    """Return the prefix of a frame, including the checksum.

    Parameters
    ----------
    type, epoch, sequence, acknowledged
        Fields of the prefix.
    header : bytes
    payload : sequence of buffers
        Parts of the payload in order.
    """
    size = sum(memoryview(part).nbytes for part in payload)
    checked = _FIXED.pack(MAGIC, type, 0, epoch, len(header), size, sequence, acknowledged)
    digest = xxhash.xxh3_64(checked)
    digest.update(header)
    for part in payload:
        digest.update(part)
    return checked + _TAIL.pack(digest.intdigest())


def read_prefix(data: Buffer, limits: Limits = DEFAULT) -> Prefix:
    """Parse and validate a prefix; allocates no memory for header or payload.

    Raises
    ------
    WireError
        The prefix is too short, not of this version, of an unknown type, or announces lengths beyond ``limits``.
    """
    if len(data) < PREFIX_BYTES:
        raise WireError(f"a frame of {len(data)} bytes is shorter than the prefix of {PREFIX_BYTES} bytes")
    magic, kind, reserved, epoch, header, payload, sequence, acknowledged = _FIXED.unpack_from(data)
    (checksum,) = _TAIL.unpack_from(data, _FIXED.size)
    if magic != MAGIC:
        raise WireError(
            f"not a frame of this version: it begins with {bytes(magic)!r}",
            hint="install the same farshore version on both machines",
        )
    if reserved or kind not in FrameType._value2member_map_:
        raise WireError(f"unknown frame type {kind}.{reserved}")
    if header > limits.header_bytes or payload > limits.payload_bytes:
        raise WireError(
            f"a frame announces {header} + {payload} bytes; the limits are {limits.header_bytes} + "
            f"{limits.payload_bytes}"
        )
    if (kind in NUMBERED) != (sequence > 0):
        raise WireError(f"a frame of type {kind} has the invalid sequence number {sequence}")
    if kind != FrameType.DATA and (payload or header > 1024):
        raise WireError(f"a frame of type {kind} announces {header} + {payload} bytes of header and payload")
    return Prefix(FrameType(kind), epoch, header, payload, sequence, acknowledged, checksum)
