"""Channels over connections that break or stall, with peers that restart or violate the protocol."""

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
def test_programs_do_not_notice_connections_cut_at_random_bytes(network: Any, kind: str, seed: int) -> None:
    draw = random.Random(seed)
    sizes = [draw.choice([0, 10, 3000, 70_000, 400_000, 1_500_000]) for _ in range(60)]
    cuts = [draw.randrange(100, 2_500_000) for _ in range(12)]
    ends = network.connect(kind, proxied=True, cuts=cuts, window_bytes=4_000_000)

    def echo() -> None:
        for i, size in enumerate(sizes):
            network.check(ends.server.receive(60), i, size)
            ends.server.send(network.message(i, size))

    def send() -> None:
        for i, size in enumerate(sizes):
            ends.node.send(network.message(i, size))

    threads = [threading.Thread(target=echo), threading.Thread(target=send)]
    for thread in threads:
        thread.start()
    for i, size in enumerate(sizes):
        network.check(ends.node.receive(60), i, size)
    for thread in threads:
        thread.join(30)
    assert ends.proxy.connections > 6
    # Each message is in the ledger once per direction, even if it was sent several times.
    for direction in ("up", "down"):
        assert [r.step for r in ends.data_rows if r.direction == direction] == list(range(len(sizes)))


@over_grpc
def test_a_lost_acknowledgement_does_not_block_the_sender(network: Any, kind: str) -> None:
    ends = network.connect(kind, proxied=True, window_bytes=100_000)
    done = threading.Event()

    def send() -> None:
        for i in range(40):
            ends.node.send(network.message(i, 90_000))
        done.set()

    threading.Thread(target=send, daemon=True).start()
    for i in range(40):
        network.check(ends.server.receive(20), i, 90_000)
        if i % 4 == 0:
            ends.proxy.cut()
    assert done.wait(20)


@over_grpc
def test_a_dead_connection_is_detected_and_replaced(network: Any, kind: str) -> None:
    ends = network.connect(kind, proxied=True, stall=0.6)
    ends.node.send(network.message(0))
    network.check(ends.server.receive(20), 0)
    ends.proxy.frozen = True
    ends.node.send(network.message(1, 1000))
    with pytest.raises(TimeoutError):
        ends.server.receive(0.2)
    started = time.monotonic()
    while ends.proxy.connections < 2:
        assert time.monotonic() - started < 20
        time.sleep(0.02)
    ends.proxy.frozen = False
    ends.proxy.cut()
    network.check(ends.server.receive(20), 1, 1000)


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_slow_link_is_not_treated_as_dead(network: Any, way: str) -> None:
    ends = network.connect("relay", proxied=True, stall=1.5)
    ends.node.send(network.message(0))
    network.check(ends.server.receive(20), 0)
    ends.proxy.rate = 100_000.0
    sender, receiver = (ends.node, ends.server) if way == "up" else (ends.server, ends.node)
    sender.send(network.message(1, 400_000))  # one chunk, which takes almost three times the stall timeout
    network.check(receiver.receive(60), 1, 400_000)
    assert ends.proxy.connections == 1


def test_heartbeats_keep_an_idle_connection(network: Any) -> None:
    ends = network.connect("direct", proxied=True, stall=1.5)
    ends.node.send(network.message(0))
    ends.server.receive(20)
    time.sleep(3.5)
    assert ends.proxy.connections == 1
    directions = {r.direction for r in ends.rows if r.kind == "heartbeat"}
    assert directions == {"up", "down"}


@over_grpc
def test_a_wrong_ticket_is_refused_without_retry(network: Any, kind: str) -> None:
    channel = Channel("server", "edge", "node")
    dialer = network.dial(channel, network.port(kind), "no such ticket")
    with pytest.raises(RefusedError, match="unknown ticket"):
        channel.receive(20)
    dialer.join(5)
    assert channel.stopped


def test_connecting_to_a_server_that_is_not_up_is_retried_and_the_reason_reported(network: Any, free_port: int) -> None:
    states: list[str] = []
    channel, client = Channel("edge", "edge", "server"), Channel("server", "edge", "node")
    network.dial(client, free_port, "edge", on_state=states.append)
    client.send(network.message(1))
    deadline = time.monotonic() + 20
    while len(states) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert states[0].startswith(f"reconnecting to 127.0.0.1:{free_port} in 0.")
    assert "onnection refused" in states[0]

    async def serve(ticket: str, read: Any, write: Any) -> None:
        from farshore.wire.pump import pump

        await pump(channel, read, write)

    network.listen(serve, free_port)
    network.check(channel.receive(20), 1)


@over_grpc
def test_a_node_program_of_an_older_epoch_ends_when_its_peer_has_a_newer_one(network: Any, kind: str) -> None:
    network.channels["edge"] = newer = Channel("edge", "edge", "server", epoch=2)
    older = Channel("server", "edge", "node", epoch=1)
    older.send(network.message(1))
    network.dial(older, network.port(kind), "edge")
    with pytest.raises(PeerLostError, match="epoch 2"):
        older.receive(20)
    with pytest.raises(TimeoutError):
        newer.receive(0.1)
    fresh = Channel("server", "edge", "node", epoch=2)
    fresh.send(network.message(7))
    network.dial(fresh, network.port(kind), "edge")
    network.check(newer.receive(20), 7)


def test_a_server_program_of_an_older_epoch_ends_when_its_peer_has_a_newer_one(network: Any) -> None:
    network.channels["edge"] = older = Channel("edge", "edge", "server", epoch=1)
    network.dial(Channel("server", "edge", "node", epoch=2), network.port("direct"), "edge")
    with pytest.raises(PeerLostError, match="epoch 2"):
        older.receive(20)


def test_a_program_that_restarted_without_its_channel_state_is_rejected(network: Any) -> None:
    ends = network.connect("direct", proxied=True)
    ends.server.send(network.message(1))
    network.check(ends.node.receive(20), 1)
    ends.node.send(network.message(2))  # carries the acknowledgement
    network.check(ends.server.receive(20), 2)
    ends.dialer.stop()
    ends.proxy.cut()
    network.dial(Channel("server", "edge", "node"), network.port("direct"), "edge")
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
        [make_prefix(FrameType.DATA, 0, 1, 0)],  # data before hello
        [make_prefix(FrameType.HELLO, 0, 0, 99)],  # claims a frame that was never sent
        [make_prefix(FrameType.HELLO, 0, 0, 0), make_prefix(FrameType.ACK, 0, 0, 50)],
        [make_prefix(FrameType.HELLO, 0, 0, 0), make_prefix(FrameType.DATA, 0, 7, 0, b"x") + b"x"],  # a gap
        [make_prefix(FrameType.HELLO, 0, 0, 0), make_prefix(FrameType.DATA, 0, 1, 0, b"\xff") + b"\xff"],  # no header
    ],
    ids=["http", "early", "unsent", "false-ack", "gap", "header"],
)
def test_hostile_bytes_close_only_their_connection(network: Any, kind: str, chunks: list[bytes]) -> None:
    bystander = network.connect(kind, "bystander")
    server = network.channels["edge"] = Channel("edge", "edge", "server", recorder=lambda row: None)
    _raw_call(network.port(kind), "edge", chunks)
    assert not server.stopped
    client = Channel("server", "edge", "node")
    network.dial(client, network.port(kind), "edge")
    client.send(network.message(4))
    network.check(server.receive(20), 4)
    bystander.node.send(network.message(5))
    network.check(bystander.server.receive(20), 5)


def test_a_sender_that_ignores_the_window_is_disconnected(network: Any) -> None:
    server = network.channels["edge"] = Channel("edge", "edge", "server", window_bytes=10_000)
    body = bytes(6_000)
    frames = [make_prefix(FrameType.DATA, 0, i, 0, b"", [body]) + body for i in range(1, 30)]
    _raw_call(network.port("direct"), "edge", [make_prefix(FrameType.HELLO, 0, 0, 0), *frames])
    assert server.inbox.bytes <= 2 * 10_000 + PREFIX_BYTES


def test_a_goodbye_between_two_connections_is_sent_on_the_next(network: Any) -> None:
    ends = network.connect("direct", proxied=True)
    ends.node.send(network.message(1))
    network.check(ends.server.receive(20), 1)
    ends.proxy.cut()
    ends.node.close(20, "done")
    with pytest.raises(PeerLostError, match="done"):
        ends.server.receive(20)
