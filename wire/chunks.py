"""Frames as chunks of about one mebibyte, the size that gRPC moves fastest, and back.

A frame is copied once on each side: into its chunks when it is sent (so that a program may change its arrays at once), and
into its own buffer when it arrives in several chunks. A frame that arrives as one chunk is not copied at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..core.errors import WireError
from .frame import PREFIX_BYTES, Buffer, Prefix, check, read_prefix
from .limits import DEFAULT, Limits

CHUNK_BYTES = 1 << 20


def cut(header: bytes, payload: Sequence[Buffer]) -> tuple[bytes, ...]:
    """Header and payload as chunks; the first leaves room for the prefix."""
    room = CHUNK_BYTES - PREFIX_BYTES
    chunks: list[bytes] = []
    parts: list[Buffer] = []
    for part in (header, *payload):
        view = memoryview(part).cast("B") if memoryview(part).nbytes else memoryview(b"")
        while len(view) >= room:
            parts.append(view[:room])
            chunks.append(b"".join(parts))
            parts, view, room = [], view[room:], CHUNK_BYTES
        if len(view):
            parts.append(view)
            room -= len(view)
    if parts or not chunks:
        chunks.append(b"".join(parts))
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
        self._body = bytearray()
        self._filled = 0

    def feed(self, chunk: bytes) -> Iterator[tuple[Prefix, memoryview]]:
        """Yield every frame that ``chunk`` completes, as prefix and body (header and payload).

        Raises
        ------
        WireError
            The bytes break the format; the connection must be closed.
        """
        view = memoryview(chunk)
        while len(view):
            if self._prefix is None:
                view, whole = self._begin(view)
                if whole is not None:
                    yield whole
                    continue
            if self._prefix is not None:
                take = min(len(view), self._prefix.body_bytes - self._filled)
                self._body[self._filled : self._filled + take] = view[:take]
                self._filled += take
                view = view[take:]
                if self._filled == self._prefix.body_bytes:
                    yield self._finish(self._prefix)

    def _begin(self, view: memoryview) -> tuple[memoryview, tuple[Prefix, memoryview] | None]:
        if not self._start and len(view) >= PREFIX_BYTES:
            prefix = read_prefix(view, self._limits)
            end = prefix.frame_bytes
            if len(view) >= end:  # the whole frame lies in this chunk: no copy
                body = view[PREFIX_BYTES:end].toreadonly()
                check(prefix, view, body)
                return view[end:], (prefix, body)
        need = PREFIX_BYTES - len(self._start)
        self._start += view[:need]
        view = view[need:]
        if len(self._start) == PREFIX_BYTES:
            prefix = read_prefix(self._start, self._limits)
            if prefix.body_bytes == 0:
                check(prefix, self._start, memoryview(b""))
                self._start = bytearray()
                return view, (prefix, memoryview(b""))
            self._prefix, self._body, self._filled = prefix, bytearray(prefix.body_bytes), 0
        return view, None

    def _finish(self, prefix: Prefix) -> tuple[Prefix, memoryview]:
        body = memoryview(self._body).toreadonly()
        start, self._start, self._prefix = self._start, bytearray(), None
        self._body, self._filled = bytearray(), 0
        check(prefix, start, body)
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
