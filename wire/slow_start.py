"""How much is written to a connection at once: little until it has shown that it is fast.

Chunks of a mebibyte are what fast links want. A link of 30 kB/s needs longer for one than a connection may be silent,
and the other end hears of a chunk only when it is whole: so a slow link would be taken for a dead one, again and again.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator

from .chunks import CHUNK_BYTES, SLACK_BYTES

_LARGEST = CHUNK_BYTES + SLACK_BYTES
_SMALLEST = 1 << 14
#: So much may vanish in buffers on the way at any speed; only what is written after it tells how fast the link is.
_BUFFERS = 1 << 19
#: Seconds of one write at which pieces become larger, and smaller.
_FAST_SECONDS, _SLOW_SECONDS = 0.5, 4.0

Write = Callable[[bytes], Awaitable[None]]


class SlowStart:
    """Writes chunks to one connection, in pieces where they are too large for it.

    Parameters
    ----------
    write : callable
        Awaits until a piece is accepted.
    clock : callable
        Monotonic seconds; for tests.

    Attributes
    ----------
    piece_bytes : int
        Most bytes that are written at once now.
    """

    def __init__(self, write: Write, clock: Callable[[], float] = time.monotonic) -> None:
        self._write, self._clock = write, clock
        self._written = 0
        self.piece_bytes = _SMALLEST

    async def write(self, chunk: bytes) -> None:
        """Write a chunk; the other end puts it together whatever its pieces are."""
        for piece in self._pieces(chunk):
            began = self._clock()
            await self._write(piece)
            self._wrote(len(piece), self._clock() - began)

    def _pieces(self, chunk: bytes) -> Iterator[bytes]:
        if len(chunk) <= self.piece_bytes:
            yield chunk
            return
        view, start = memoryview(chunk), 0
        while start < len(chunk):
            piece = bytes(view[start : start + self.piece_bytes])
            start += len(piece)
            yield piece

    def _wrote(self, count: int, seconds: float) -> None:
        self._written += count
        if seconds > _SLOW_SECONDS:
            self.piece_bytes = max(_SMALLEST, self.piece_bytes // 2)
        elif seconds < _FAST_SECONDS and self._written > _BUFFERS and count >= self.piece_bytes // 2:
            self.piece_bytes = min(_LARGEST, self.piece_bytes * 2)
