"""Frames as chunks of about one mebibyte, the size that gRPC moves fastest, and back.

The payload is copied once on each side at most: into its chunks when it is sent (so that a program may change its
arrays at once), and into its own buffer when it arrives in several chunks. A frame that arrives as one chunk is not
copied at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import xxhash

from ..core.errors import WireError
from .frame import CHECKED_BYTES, PREFIX_BYTES, Buffer, Prefix, read_prefix
from .limits import DEFAULT, Limits

CHUNK_BYTES = 1 << 20
#: A frame that is longer than a chunk by no more than this travels as one, and so is not copied where it arrives.
SLACK_BYTES = 1 << 16


def cut(prefix: bytes, header: bytes, payload: Sequence[Buffer], chunk_bytes: int = CHUNK_BYTES) -> tuple[bytes, ...]:
    """A frame as chunks; the payload is copied, once.

    Parameters
    ----------
    prefix, header : bytes
    payload : sequence of buffers
        Parts in order.
    chunk_bytes : int
        Size of every chunk but the last.
    """
    parts = [memoryview(part).cast("B") for part in payload if memoryview(part).nbytes]
    size = len(prefix) + len(header) + sum(part.nbytes for part in parts)
    if size <= chunk_bytes + min(SLACK_BYTES, chunk_bytes):
        return (b"".join((prefix, header, *parts)),)
    chunks: list[bytes] = []
    gathered: list[memoryview] = []
    room = chunk_bytes
    for part in (memoryview(prefix), memoryview(header), *parts):
        start = 0
        while start < part.nbytes:
            piece = part[start : start + room]
            gathered.append(piece)
            start, room = start + piece.nbytes, room - piece.nbytes
            if not room:
                chunks.append(b"".join(gathered))
                gathered, room = [], chunk_bytes
    if gathered:
        chunks.append(b"".join(gathered))
    return tuple(chunks)


class Assembler:
    """Puts frames together again from chunks of any size; one per connection.

    Parameters
    ----------
    limits : Limits
        Checked before a frame's buffer is made.
    """

    def __init__(self, limits: Limits = DEFAULT) -> None:
        self._limits = limits
        self._start = bytearray()
        self._prefix: Prefix | None = None
        self._body = memoryview(b"")
        self._filled = 0
        self._digest = xxhash.xxh3_64()

    def feed(self, chunk: Buffer) -> Iterator[tuple[Prefix, memoryview]]:
        """Yield every frame that ``chunk`` completes, as prefix and body (header and payload).

        Raises
        ------
        WireError
            The bytes break the format; the connection must be closed.
        """
        view = memoryview(chunk)
        while view.nbytes:
            if self._prefix is None:
                view = self._begin(view)
            prefix = self._prefix
            if prefix is None:
                return
            if not self._filled and view.nbytes >= prefix.body_bytes:  # the rest lies in this chunk: no copy
                self._body, view = view[: prefix.body_bytes], view[prefix.body_bytes :]
                self._digest.update(self._body)
                yield self._finish(prefix)
                continue
            if not self._body.nbytes:
                # Its pages come into being as they are filled: a length that is only announced costs nothing.
                self._body = np.empty(prefix.body_bytes, np.uint8).data
            piece = view[: prefix.body_bytes - self._filled]
            self._body[self._filled : self._filled + piece.nbytes] = piece
            self._digest.update(piece)
            self._filled += piece.nbytes
            view = view[piece.nbytes :]
            if self._filled == prefix.body_bytes:
                yield self._finish(prefix)

    def _begin(self, view: memoryview) -> memoryview:
        """Read the prefix, which may come in pieces; returns what follows it."""
        take = PREFIX_BYTES - len(self._start)
        self._start += view[:take]
        if len(self._start) == PREFIX_BYTES:
            self._prefix = read_prefix(self._start, self._limits)
            self._digest = xxhash.xxh3_64(memoryview(self._start)[:CHECKED_BYTES])
        return view[take:]

    def _finish(self, prefix: Prefix) -> tuple[Prefix, memoryview]:
        body, self._body, self._filled = self._body.toreadonly(), memoryview(b""), 0
        self._start, self._prefix = bytearray(), None
        if self._digest.intdigest() != prefix.checksum:
            raise WireError(f"frame {prefix.sequence} arrived damaged (its checksum does not fit)")
        return prefix, body

    def end(self) -> None:
        """Say that no more chunks come.

        Raises
        ------
        WireError
            A frame was cut short.
        """
        if self._start:
            raise WireError("the connection ended in the middle of a frame")
