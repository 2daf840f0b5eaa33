"""Shaped links have the bandwidth, latency and jitter of their profile, and keep the order of chunks."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np
import pytest

from farshore.core.profiles import LinkProfile
from farshore.core.seeds import Seed
from farshore.wire.shaper import Pacer, Shaper


def _pacer(mbps: float = 0.0, latency: float = 0.0, jitter: float = 0.0, seed: int = 0) -> Pacer:
    return Pacer(mbps, latency, jitter, np.random.default_rng(seed))


def test_transmission_times_add_up_and_latency_is_added_once() -> None:
    pacer = _pacer(mbps=10, latency=0.02)
    arrivals = [pacer.schedule(100.0, 125_000) for _ in range(10)]
    assert arrivals == pytest.approx([100.0 + 0.1 * (i + 1) + 0.02 for i in range(10)])


def test_an_idle_link_does_not_accumulate_bandwidth() -> None:
    pacer = _pacer(mbps=8)
    pacer.schedule(0.0, 1_000_000)
    assert pacer.schedule(50.0, 1_000_000) == pytest.approx(51.0)


def test_without_limits_chunks_arrive_at_once() -> None:
    assert _pacer().schedule(5.0, 1 << 30) == 5.0


def test_jitter_is_seeded_and_does_not_reorder() -> None:
    first = [_pacer(100, 0.05, 0.03, 1)]
    runs = [
        [p.schedule(0.001 * i, 1000) for i in range(500)]
        for p in (*first, _pacer(100, 0.05, 0.03, 1), _pacer(100, 0.05, 0.03, 2))
    ]
    assert runs[0] == runs[1] != runs[2]
    assert runs[0] == sorted(runs[0])
    delays = np.array(runs[0]) - 0.001 * np.arange(500)
    assert delays.min() > 0
    assert 0.05 < delays.mean() < 0.2


def _pipe(link: LinkProfile) -> tuple[Shaper, asyncio.Queue[bytes | None], asyncio.Queue[bytes], Any, Any]:
    shaper = Shaper(link, Seed(1))
    incoming: asyncio.Queue[bytes | None] = asyncio.Queue()
    outgoing: asyncio.Queue[bytes] = asyncio.Queue()
    read, write = shaper(incoming.get, outgoing.put)
    return shaper, incoming, outgoing, read, write


def test_each_direction_has_its_own_bandwidth() -> None:
    async def measure() -> tuple[float, float]:
        shaper, incoming, outgoing, read, write = _pipe(LinkProfile(up_mbps=8, down_mbps=16, latency_ms=30))
        start = time.monotonic()
        for _ in range(8):
            await write(bytes(25_000))
        await shaper.flush()
        up = time.monotonic() - start
        assert outgoing.qsize() == 8
        start = time.monotonic()
        for _ in range(8):
            incoming.put_nowait(bytes(25_000))
        for _ in range(8):
            assert await read() == bytes(25_000)
        down = time.monotonic() - start
        incoming.put_nowait(None)
        assert await read() is None
        return up, down

    up, down = asyncio.run(measure())
    assert 0.229 <= up < 0.5  # 200 kB at 1 MB/s, and one latency
    assert 0.129 <= down < 0.4


def test_errors_of_the_connection_are_raised() -> None:
    async def measure() -> None:
        async def broken(*_: Any) -> Any:
            raise ConnectionResetError("gone")

        read, write = Shaper(LinkProfile(latency_ms=5), Seed(1))(broken, broken)
        with pytest.raises(ConnectionResetError):
            await read()
        await write(b"x")
        await asyncio.sleep(0.05)
        with pytest.raises(ConnectionResetError):
            await write(b"x")

    asyncio.run(measure())


def test_chunks_of_slow_links_are_small() -> None:
    assert Shaper(LinkProfile(up_mbps=10), Seed(0)).chunk_bytes == 125_000
    assert Shaper(LinkProfile(up_mbps=0.1), Seed(0)).chunk_bytes == 1 << 14
    assert Shaper(LinkProfile(), Seed(0)).chunk_bytes == 1 << 20


@pytest.mark.parametrize("kind", ["direct", "relay"])
def test_messages_on_a_shaped_channel_take_the_time_of_its_link(network: Any, kind: str) -> None:
    shaper = Shaper(LinkProfile(up_mbps=10, down_mbps=20, latency_ms=20, jitter_ms=1), Seed(5))
    ends = network.connect(kind, shaper=shaper)
    ends.node.send(network.message(0))
    ends.server.receive(20)
    for number, (source, sink, seconds) in enumerate(
        [(ends.node, ends.server, 0.4), (ends.server, ends.node, 0.2)], start=1
    ):
        start = time.monotonic()
        source.send(network.message(number, 500_000))
        network.check(sink.receive(20), number, 500_000)
        taken = time.monotonic() - start
        assert seconds + 0.015 <= taken < seconds + 0.5, taken


def test_a_shaped_channel_delivers_its_goodbye(network: Any) -> None:
    ends = network.connect("direct", shaper=Shaper(LinkProfile(up_mbps=5, latency_ms=50), Seed(5)))
    ends.node.send(network.message(1, 50_000))
    network.check(ends.server.receive(20), 1, 50_000)
    ends.node.close(20, "done")
    with pytest.raises(Exception, match="done"):
        ends.server.receive(5)
