"""Channels over connections that break, stall, lie, or come back as somebody else."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from typing import Any

import grpc
import pytest

from farshore.core.errors import PeerLostError, RefusedError
from farshore.wire.channel import Channel
from farshore.wire.frame import PREFIX_BYTES, FrameType, make_prefix
from farshore.wire.grpc_attach import METHOD, TICKET

over_grpc = pytest.mark.parametrize("kind", ["direct", "relay"])


@over_grpc
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_connection_cut_at_random_bytes_costs_programs_nothing(wires: Any, kind: str, seed: int) -> None:
    draw = random.Random(seed)
    sizes = [draw.choice([0, 10, 3000, 70_000, 400_000, 1_500_000]) for _ in range(60)]
    cuts = [draw.randrange(100, 2_500_000) for _ in range(12)]
    ends = wires.connect(kind, proxied=True, cuts=cuts, window_bytes=4_000_000)

    def echo() -> None:
        for i, size in enumerate(sizes):
            wires.check(ends.server.receive(60), i, size)
            ends.server.send(wires.message(i, size))

    def send() -> None:
        for i, size in enumerate(sizes):
            ends.node.send(wires.message(i, size))

    threads = [threading.Thread(target=echo), threading.Thread(target=send)]
    for thread in threads:
        thread.start()
    for i, size in enumerate(sizes):
        wires.check(ends.node.receive(60), i, size)
    for thread in threads:
        thread.join(30)
    assert ends.proxy.connections > 6
    # Each message is in the ledger once per direction, however often it crossed.
    for direction in ("up", "down"):
        assert [r.step for r in ends.data_rows if r.direction == direction] == list(range(len(sizes)))


@over_grpc
def test_an_acknowledgement_lost_with_its_connection_blocks_nobody(wires: Any, kind: str) -> None:
    ends = wires.connect(kind, proxied=True, window_bytes=100_000)
    done = threading.Event()

    def send() -> None:
        for i in range(40):
            ends.node.send(wires.message(i, 90_000))
        done.set()

    threading.Thread(target=send, daemon=True).start()
    for i in range(40):
        wires.check(ends.server.receive(20), i, 90_000)
        if i % 4 == 0:
            ends.proxy.cut()
    assert done.wait(20)


@over_grpc
def test_a_dead_link_is_noticed_and_replaced(wires: Any, kind: str) -> None:
    ends = wires.connect(kind, proxied=True, stall=0.6)
    ends.node.send(wires.message(0))
    wires.check(ends.server.receive(20), 0)
    ends.proxy.frozen = True
    ends.node.send(wires.message(1, 1000))
    with pytest.raises(TimeoutError):
        ends.server.receive(0.2)
    started = time.monotonic()
    while ends.proxy.connections < 2:
        assert time.monotonic() - started < 20
        time.sleep(0.02)
    ends.proxy.frozen = False
    ends.proxy.cut()
    wires.check(ends.server.receive(20), 1, 1000)


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_slow_link_that_moves_is_not_taken_for_a_dead_one(wires: Any, way: str) -> None:
    ends = wires.connect("relay", proxied=True, stall=1.5)
    ends.node.send(wires.message(0))
    wires.check(ends.server.receive(20), 0)
    ends.proxy.rate = 100_000.0
    sender, receiver = (ends.node, ends.server) if way == "up" else (ends.server, ends.node)
    sender.send(wires.message(1, 400_000))  # one chunk, and almost three times as long as silence may last
    wires.check(receiver.receive(60), 1, 400_000)
    assert ends.proxy.connections == 1


def test_heartbeats_keep_an_idle_connection(wires: Any) -> None:
    ends = wires.connect("direct", proxied=True, stall=1.5)
    ends.node.send(wires.message(0))
    ends.server.receive(20)
    time.sleep(3.5)
    assert ends.proxy.connections == 1
    beats = {r.direction for r in ends.rows if r.kind == "heartbeat"}
    assert beats == {"up", "down"}


@over_grpc
def test_a_wrong_ticket_is_refused_for_good(wires: Any, kind: str) -> None:
    channel = Channel("server", "edge", "node")
    dialer = wires.dial(channel, wires.port(kind), "no such ticket")
    with pytest.raises(RefusedError, match="the ticket opens nothing here"):
        channel.receive(20)
    dialer.join(5)
    assert channel.stopped


def test_a_server_that_is_not_there_yet_is_tried_again_and_the_reason_told(wires: Any, free_port: int) -> None:
    said: list[str] = []
    channel, mine = Channel("edge", "edge", "server"), Channel("server", "edge", "node")
    wires.dial(mine, free_port, "edge", on_state=said.append)
    mine.send(wires.message(1))
    deadline = time.monotonic() + 20
    while len(said) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert said[0].startswith(f"reconnecting to 127.0.0.1:{free_port} in 0.")
    assert "onnection refused" in said[0]

    async def serve(ticket: str, read: Any, write: Any) -> None:
        from farshore.wire.pump import pump

        await pump(channel, read, write)

    wires.listen(serve, free_port)
    wires.check(channel.receive(20), 1)


@over_grpc
def test_a_program_of_an_older_epoch_ends_when_it_meets_a_newer_one(wires: Any, kind: str) -> None:
    wires.channels["edge"] = newer = Channel("edge", "edge", "server", epoch=2)
    older = Channel("server", "edge", "node", epoch=1)
    older.send(wires.message(1))
    wires.dial(older, wires.port(kind), "edge")
    with pytest.raises(PeerLostError, match="epoch 2"):
        older.receive(20)
    with pytest.raises(TimeoutError):
        newer.receive(0.1)
    fresh = Channel("server", "edge", "node", epoch=2)
    fresh.send(wires.message(7))
    wires.dial(fresh, wires.port(kind), "edge")
    wires.check(newer.receive(20), 7)


def test_a_server_program_of_an_older_epoch_ends_too(wires: Any) -> None:
    wires.channels["edge"] = older = Channel("edge", "edge", "server", epoch=1)
    wires.dial(Channel("server", "edge", "node", epoch=2), wires.port("direct"), "edge")
    with pytest.raises(PeerLostError, match="epoch 2"):
        older.receive(20)


def test_a_program_that_lost_its_memory_is_not_taken_for_the_old_one(wires: Any) -> None:
    ends = wires.connect("direct", proxied=True)
    ends.server.send(wires.message(1))
    wires.check(ends.node.receive(20), 1)
    ends.node.send(wires.message(2))  # carries the acknowledgement
    wires.check(ends.server.receive(20), 2)
    ends.dialer.stop()
    ends.proxy.cut()
    wires.dial(Channel("server", "edge", "node"), wires.port("direct"), "edge")
    with pytest.raises(PeerLostError, match="not the program"):
        ends.server.receive(20)


def _raw_call(port: int, ticket: str, chunks: list[bytes]) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.stream_stream(METHOD)(iter(chunks), metadata=((TICKET, ticket),), timeout=10)
        with contextlib.suppress(grpc.RpcError):
            for _ in call:
                pass
        assert call.code() is not grpc.StatusCode.DEADLINE_EXCEEDED


@over_grpc
@pytest.mark.parametrize(
    "chunks",
    [
        [b"GET / HTTP/1.1\r\n" * 10],
        [make_prefix(FrameType.DATA, 0, 1, 0)],  # data before the greeting
        [make_prefix(FrameType.HELLO, 0, 0, 99)],  # has what was never sent
        [make_prefix(FrameType.HELLO, 0, 0, 0), make_prefix(FrameType.ACK, 0, 0, 50)],
        [make_prefix(FrameType.HELLO, 0, 0, 0), make_prefix(FrameType.DATA, 0, 7, 0, b"x") + b"x"],  # a gap
        [make_prefix(FrameType.HELLO, 0, 0, 0), make_prefix(FrameType.DATA, 0, 1, 0, b"\xff") + b"\xff"],  # no header
    ],
    ids=["http", "early", "unsent", "false-ack", "gap", "header"],
)
def test_hostile_bytes_close_their_connection_only(wires: Any, kind: str, chunks: list[bytes]) -> None:
    bystander = wires.connect(kind, "bystander")
    server = wires.channels["edge"] = Channel("edge", "edge", "server", recorder=lambda row: None)
    _raw_call(wires.port(kind), "edge", chunks)
    assert not server.stopped
    mine = Channel("server", "edge", "node")
    wires.dial(mine, wires.port(kind), "edge")
    mine.send(wires.message(4))
    wires.check(server.receive(20), 4)
    bystander.node.send(wires.message(5))
    wires.check(bystander.server.receive(20), 5)


def test_a_sender_that_ignores_the_window_is_cut_off(wires: Any) -> None:
    server = wires.channels["edge"] = Channel("edge", "edge", "server", window_bytes=10_000)
    body = bytes(6_000)
    frames = [make_prefix(FrameType.DATA, 0, i, 0, b"", [body]) + body for i in range(1, 30)]
    _raw_call(wires.port("direct"), "edge", [make_prefix(FrameType.HELLO, 0, 0, 0), *frames])
    assert server.inbox.bytes <= 2 * 10_000 + PREFIX_BYTES


def test_a_goodbye_between_two_connections_is_said_on_the_next(wires: Any) -> None:
    ends = wires.connect("direct", proxied=True)
    ends.node.send(wires.message(1))
    wires.check(ends.server.receive(20), 1)
    ends.proxy.cut()
    ends.node.close(20, "done")
    with pytest.raises(PeerLostError, match="done"):
        ends.server.receive(20)
