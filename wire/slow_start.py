"""Slow start: adapts the size of writes to the speed of a connection, beginning with small ones.

Fast links need chunks of 1 MiB for full throughput. But gRPC delivers only whole chunks, and on a link of 30 kB/s a
chunk of 1 MiB takes longer than the stall timeout, so that the connection would be closed again and again.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator

from .chunks import CHUNK_BYTES, SLACK_BYTES

_MAX_PIECE_BYTES = CHUNK_BYTES + SLACK_BYTES
_MIN_PIECE_BYTES = 1 << 14
#: Buffers on the path accept this many bytes at any speed, so that the first writes do not indicate the link's speed.
_BUFFER_BYTES = 1 << 19
#: Duration of a write below which pieces grow, and above which they shrink, in seconds.
_FAST_SECONDS, _SLOW_SECONDS = 0.5, 4.0

Write = Callable[[bytes], Awaitable[None]]


class SlowStart:
    """Writes chunks to one connection, split into pieces of adaptive size.

    Parameters
    ----------
    write : callable
        Returns when a piece has been accepted.
    clock : callable
        Monotonic time in seconds.

    Attributes
    ----------
    piece_bytes : int
        Current maximum size of a piece.
    """

    def __init__(self, write: Write, clock: Callable[[], float] = time.monotonic) -> None:
        self._write, self._clock = write, clock
        self._written = 0
        self.piece_bytes = _MIN_PIECE_BYTES

    async def write(self, chunk: bytes) -> None:
        """Write a chunk in pieces; the receiver reassembles frames from pieces of any size."""
        for piece in self._pieces(chunk):
            start = self._clock()
            await self._write(piece)
            self._adapt(len(piece), self._clock() - start)

    def _pieces(self, chunk: bytes) -> Iterator[bytes]:
        if len(chunk) <= self.piece_bytes:
            yield chunk
            return
        view, start = memoryview(chunk), 0
        while start < len(chunk):
            piece = bytes(view[start : start + self.piece_bytes])
            start += len(piece)
            yield piece

    def _adapt(self, count: int, seconds: float) -> None:
        self._written += count
        if seconds > _SLOW_SECONDS:
            self.piece_bytes = max(_MIN_PIECE_BYTES, self.piece_bytes // 2)
        elif seconds < _FAST_SECONDS and self._written > _BUFFER_BYTES and count >= self.piece_bytes // 2:
            self.piece_bytes = min(_MAX_PIECE_BYTES, self.piece_bytes * 2)
