"""Property tests of channels: chunks are moved step by step, and connections break at any point."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farshore.core.message import Message, Tensor
from farshore.core.transfer import Transfer
from farshore.wire.channel import WINDOW_BYTES, Channel
from farshore.wire.chunks import Assembler
from farshore.wire.connection import Connection
from farshore.wire.frame import FrameType, make_prefix
from farshore.wire.pump import pump

steps = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.sampled_from(["up", "down"]), st.integers(0, 3000)),
        st.tuples(st.just("carry"), st.sampled_from(["up", "down"]), st.integers(1, 6)),
        st.tuples(st.just("take"), st.sampled_from(["up", "down"]), st.integers(1, 3)),
        st.tuples(st.just("cut"), st.just("up"), st.integers(0, 3)),
    ),
    max_size=60,
)


class Bench:
    """The channels of a server and a node, and the connection between them."""

    def __init__(self, window: int = WINDOW_BYTES) -> None:
        self.rows: list[Transfer] = []
        small: dict[str, int] = {"chunk_bytes": 700, "window_bytes": window}
        self.ends = {
            "down": Channel("edge", "edge", "server", recorder=self.rows.append, **small),
            "up": Channel("server", "edge", "node", **small),
        }
        self.sent: dict[str, list[int]] = {"up": [], "down": []}
        self.got: dict[str, list[int]] = {"up": [], "down": []}
        self.connect()

    def connect(self) -> None:
        """Replace the connection; chunks in transit on the old one are lost."""
        self.attached: dict[str, Connection] = {d: c.attach(lambda: None) for d, c in self.ends.items()}
        self.leaving: dict[str, Iterator[bytes]] = {}

    def send(self, direction: str, size: int) -> None:
        number = len(self.sent[direction])
        self.sent[direction].append(number)
        self.ends[direction].send(
            Message("m", step=number, tensors={"a": Tensor(np.full(size, number % 256, np.uint8))})
        )

    def carry(self, direction: str, count: int) -> bool:
        """Move up to ``count`` chunks; returns whether any moved."""
        receiver = self.attached["down" if direction == "up" else "up"]
        for moved in range(count):
            chunk = next(self.leaving.setdefault(direction, self.attached[direction].outgoing()), None)
            if chunk is None:
                del self.leaving[direction]
                return moved > 0
            receiver.feed(chunk)
        return True

    def take(self, direction: str) -> None:
        channel = self.ends["down" if direction == "up" else "up"]
        if channel.inbox.ready:
            message = channel.receive(0)
            assert (message.array("a") == message.step % 256).all()
            self.got[direction].append(message.step)


@settings(max_examples=150, deadline=None)
@given(steps)
def test_every_message_is_received_once_and_in_order_whenever_connections_break(
    plan: list[tuple[str, str, int]],
) -> None:
    bench = Bench()
    actions: dict[str, Callable[[str, int], Any]] = {
        "send": bench.send,
        "carry": bench.carry,
        "take": lambda direction, count: [bench.take(direction) for _ in range(count)],
        "cut": lambda _, __: bench.connect(),
    }
    for what, direction, number in plan:
        actions[what](direction, number)
    moving = True
    while moving:
        moving = bench.carry("up", 100) | bench.carry("down", 100)
        for direction in ("up", "down"):
            for _ in bench.sent[direction]:
                bench.take(direction)
    for direction in ("up", "down"):
        assert bench.got[direction] == bench.sent[direction]
        recorded = [r.step for r in bench.rows if r.kind == "m" and r.direction == direction]
        assert recorded == bench.sent[direction]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 2000), min_size=1, max_size=20), st.integers(0, 40))
def test_frames_that_arrived_are_not_retransmitted(sizes: list[int], carried: int) -> None:
    bench = Bench()
    while bench.carry("up", 100) | bench.carry("down", 100):
        pass
    for size in sizes:
        bench.send("down", size)
    bench.carry("down", carried)
    arrived = len(bench.ends["up"].inbox)
    bench.connect()
    while bench.carry("up", 100) | bench.carry("down", 100):
        pass
    again = [r for r in bench.rows if r.kind == "retransmission"]
    # At most the frame that was in transit when the connection broke.
    assert len(again) <= 1
    assert len(bench.ends["up"].inbox) == len(sizes) >= arrived


def test_a_request_for_acknowledgement_does_not_overtake_earlier_messages() -> None:
    bench = Bench()
    while bench.carry("up", 100) | bench.carry("down", 100):
        pass
    for size in (2000, 2000):
        bench.send("up", size)
    closer = threading.Thread(target=lambda: bench.ends["up"].close(60, "done"))
    closer.start()
    while not bench.ends["up"].asking:
        pass
    # Closing must not depend on periodic heartbeats, whatever the other program does meanwhile.
    while bench.carry("up", 100):
        pass
    for _ in range(2):
        bench.take("up")
    deadline = time.monotonic() + 15
    while closer.is_alive():
        assert time.monotonic() < deadline
        bench.carry("down", 100)
    bench.carry("up", 100)
    assert bench.ends["down"].peer_left


def test_a_frame_that_waits_for_the_window_acknowledges_only_what_was_received_when_it_was_created() -> None:
    bench = Bench(window=10_000)
    while bench.carry("up", 100) | bench.carry("down", 100):
        pass
    node, server = bench.ends["up"], bench.ends["down"]
    bench.send("up", 6000)
    waiting = threading.Thread(target=bench.send, args=("up", 6000))
    waiting.start()
    while len(bench.sent["up"]) < 2:
        pass
    time.sleep(0.05)  # the frame is created and waits
    for _ in range(3):
        bench.send("down", 1000)
    bench.carry("down", 100)
    bench.take("down")
    bench.take("down")
    before = node.unacknowledged
    assert before > 2000
    bench.carry("up", 100)
    bench.take("up")
    bench.carry("down", 100)
    waiting.join(10)
    assert not waiting.is_alive()
    assert node.unacknowledged == before  # not acknowledged by that frame
    bench.take("down")  # now a quarter of the window is unacknowledged
    bench.carry("up", 100)
    assert node.unacknowledged == 0
    assert server.drained(0)


def test_a_goodbye_that_is_queued_when_the_writer_becomes_idle_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    channel = Channel("server", "edge", "node")
    original = Connection.outgoing

    def outgoing(self: Connection) -> Iterator[bytes]:
        yield from original(self)
        channel.close(0)

    monkeypatch.setattr(Connection, "outgoing", outgoing)
    written: list[bytes] = []

    async def connection() -> None:
        chunks = [make_prefix(FrameType.HELLO, 0, 0, 0)]

        async def read() -> bytes | None:
            if chunks:
                return chunks.pop()
            await asyncio.sleep(60)
            return None

        async def write(chunk: bytes) -> None:
            written.append(chunk)

        await asyncio.wait_for(pump(channel, read, write), 20)

    asyncio.run(connection())
    kinds = [prefix.type for chunk in written for prefix, _ in Assembler().feed(chunk)]
    assert kinds == [FrameType.HELLO, FrameType.BYE]
