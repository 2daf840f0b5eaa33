"""Slow start: sizes of writes on links of different speeds."""

from __future__ import annotations

import asyncio

from farshore.wire.slow_start import SlowStart


class Link:
    """A link with a given rate, in virtual time; the first bytes fill a buffer at once."""

    def __init__(self, rate: float, buffer: int = 300_000) -> None:
        self.rate, self._buffer, self.now = rate, buffer, 0.0
        self.pieces: list[bytes] = []

    async def write(self, piece: bytes) -> None:
        self.pieces.append(piece)
        free = min(self._buffer, len(piece))
        self._buffer -= free
        self.now += (len(piece) - free) / self.rate


def written(link: Link, count: int = 6, size: int = 1 << 20) -> list[int]:
    """Write ``count`` chunks; returns the sizes of the pieces."""
    start = SlowStart(link.write, clock=lambda: link.now)
    chunks = [bytes([i]) * size for i in range(count)]

    async def write() -> None:
        for chunk in chunks:
            await start.write(chunk)

    asyncio.run(write())
    assert b"".join(link.pieces) == b"".join(chunks)
    return [len(piece) for piece in link.pieces]


def test_fast_links_get_whole_chunks_after_the_first_mebibyte() -> None:
    sizes = written(Link(1e9))
    assert sizes[-4:] == [1 << 20] * 4
    assert len(sizes) < 50


def test_on_slow_links_pieces_arrive_well_within_the_stall_timeout() -> None:
    for rate in (1e3, 1e4, 1e5, 1e6):
        assert max(written(Link(rate))) / rate <= max(2.0, (1 << 14) / rate)


def test_pieces_shrink_when_a_link_becomes_slow() -> None:
    link = Link(1e9)
    start = SlowStart(link.write, clock=lambda: link.now)

    async def write() -> None:
        for _ in range(3):
            await start.write(bytes(1 << 20))
        assert start.piece_bytes >= 1 << 20
        link.rate = 1e4
        await start.write(bytes(1 << 20))
        await start.write(bytes(1 << 20))

    asyncio.run(write())
    assert start.piece_bytes <= 1 << 16
