"""Splits frames into chunks of about 1 MiB, at which gRPC has the highest throughput, and reassembles them.

The payload is copied at most once on each side: into the chunks when it is sent, so that the program may modify its
arrays at once, and into a buffer when it arrives in several chunks. A frame that arrives in one chunk is not copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import xxhash

from ..core.errors import WireError
from .frame import CHECKED_BYTES, PREFIX_BYTES, Buffer, Prefix, read_prefix
from .limits import DEFAULT, Limits

CHUNK_BYTES = 1 << 20
#: A frame up to this much longer than a chunk is sent as one chunk, so that the receiver need not copy it.
SLACK_BYTES = 1 << 16


def cut(prefix: bytes, header: bytes, payload: Sequence[Buffer], chunk_bytes: int = CHUNK_BYTES) -> tuple[bytes, ...]:
    """Split a frame into chunks; copies the payload once.

    Parameters
    ----------
    prefix, header : bytes
    payload : sequence of buffers
        Parts in order.
    chunk_bytes : int
        Size of all chunks except the last.
    """
    parts = [memoryview(part).cast("B") for part in payload if memoryview(part).nbytes]
    size = len(prefix) + len(header) + sum(part.nbytes for part in parts)
    if size <= chunk_bytes + min(SLACK_BYTES, chunk_bytes):
        return (b"".join((prefix, header, *parts)),)
    chunks: list[bytes] = []
    gathered: list[memoryview] = []
    space = chunk_bytes
    for part in (memoryview(prefix), memoryview(header), *parts):
        start = 0
        while start < part.nbytes:
            piece = part[start : start + space]
            gathered.append(piece)
            start, space = start + piece.nbytes, space - piece.nbytes
            if not space:
                chunks.append(b"".join(gathered))
                gathered, space = [], chunk_bytes
    if gathered:
        chunks.append(b"".join(gathered))
    return tuple(chunks)


class Assembler:
    """Reassembles frames from chunks of any size; one per connection.

    Parameters
    ----------
    limits : callable
        Returns the limits of the next frame, checked before its buffer is allocated.
    """

    def __init__(self, limits: Callable[[], Limits] = lambda: DEFAULT) -> None:
        self._limits = limits
        self._start = bytearray()
        self._prefix: Prefix | None = None
        self._body = memoryview(b"")
        self._filled = 0
        self._digest = xxhash.xxh3_64()

    def feed(self, chunk: Buffer) -> Iterator[tuple[Prefix, memoryview]]:
        """Yield each frame that ``chunk`` completes, as prefix and body (header and payload).

        Raises
        ------
        WireError
            The bytes violate the format; the connection must be closed.
        """
        view = memoryview(chunk)
        while view.nbytes:
            if self._prefix is None:
                view = self._begin(view)
            prefix = self._prefix
            if prefix is None:
                return
            if not self._filled and view.nbytes >= prefix.body_bytes:  # the chunk contains the whole body: no copy
                self._body, view = view[: prefix.body_bytes], view[prefix.body_bytes :]
                self._digest.update(self._body)
                yield self._finish(prefix)
                continue
            if not self._body.nbytes:
                self._body = _allocate(prefix.body_bytes)
            piece = view[: prefix.body_bytes - self._filled]
            self._body[self._filled : self._filled + piece.nbytes] = piece
            self._digest.update(piece)
            self._filled += piece.nbytes
            view = view[piece.nbytes :]
            if self._filled == prefix.body_bytes:
                yield self._finish(prefix)

    def _begin(self, view: memoryview) -> memoryview:
        """Read the prefix, which may be split over chunks, and return the bytes that follow it."""
        take = PREFIX_BYTES - len(self._start)
        self._start += view[:take]
        if len(self._start) == PREFIX_BYTES:
            self._prefix = read_prefix(self._start, self._limits())
            self._digest = xxhash.xxh3_64(memoryview(self._start)[:CHECKED_BYTES])
        return view[take:]

    def _finish(self, prefix: Prefix) -> tuple[Prefix, memoryview]:
        body, self._body, self._filled = self._body.toreadonly(), memoryview(b""), 0
        self._start, self._prefix = bytearray(), None
        if self._digest.intdigest() != prefix.checksum:
            raise WireError(f"frame {prefix.sequence} has a wrong checksum")
        return prefix, body

    def end(self) -> None:
        """Check that the connection did not end within a frame.

        Raises
        ------
        WireError
            A frame is incomplete.
        """
        if self._start:
            raise WireError("the connection ended in the middle of a frame")


def _allocate(size: int) -> memoryview:
    """Memory for a frame; its pages are allocated when they are written, so that announcing a large length is cheap."""
    try:
        return np.empty(size, np.uint8).data
    except MemoryError:
        raise WireError(f"there is no memory for a frame of {size} bytes") from None
