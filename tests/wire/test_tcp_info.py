"""The socket meter counts the bytes of open and closed TCP connections."""

from __future__ import annotations

import select
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from farshore.wire.tcp_info import AcceptedConnection, SocketBytes, SocketMeter, _messages, _parse, parse_peer

CLIENT = """
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as s:
    s.sendall(b"u" * 300_000)
    got = 0
    while got < 70_000:
        got += len(s.recv(65536))
    s.sendall(b"!")  # carries the acknowledgement of everything received
    if sys.argv[2] == "stay":
        s.recv(1)
"""


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening


@pytest.fixture
def meter() -> Iterator[SocketMeter]:
    opened = SocketMeter.open()
    if opened is None:
        pytest.skip("this system has no byte counters of sockets")
    with opened:
        yield opened


def talk(listener: socket.socket, meter: SocketMeter | None) -> tuple[socket.socket, AcceptedConnection]:
    peer, (host, port) = listener.accept()
    connection = AcceptedConnection(listener.getsockname()[1], parse_peer(f"ipv4:{host}:{port}"))
    if meter is not None:
        meter.watch(connection)
    got = 0
    while got < 300_000:
        got += len(peer.recv(65536))
    peer.sendall(b"d" * 70_000)
    assert peer.recv(1) == b"!"
    return peer, connection


def dial(listener: socket.socket, how: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", CLIENT, str(listener.getsockname()[1]), how])


def check(count: SocketBytes | None) -> None:
    assert count is not None
    # The kernel counts the opening and closing flags as a byte each.
    assert (abs(count.up - 300_001) <= 2, abs(count.down - 70_000) <= 2) == (True, True), count


def test_a_closed_connection_is_counted_exactly_and_once(listener: socket.socket, meter: SocketMeter) -> None:
    child = dial(listener, "leave")
    peer, connection = talk(listener, meter)
    assert peer.recv(1) == b""
    peer.close()
    assert child.wait(30) == 0
    assert select.select([meter], [], [], 5)[0] == [meter]
    meter.drain()
    check(meter.take([connection]).get(connection))
    assert meter.take([connection]) == {}


def test_open_connections_to_one_port_are_counted_separately(listener: socket.socket, meter: SocketMeter) -> None:
    children = [dial(listener, "stay") for _ in range(2)]
    talks = [talk(listener, meter) for _ in children]
    found = meter.take([connection for _, connection in talks])
    assert len(found) == 2
    for peer, connection in talks:
        check(found[connection])
        peer.sendall(b"x")
        peer.close()
    assert [child.wait(30) for child in children] == [0, 0]


def test_connections_that_are_not_watched_are_not_counted(listener: socket.socket, meter: SocketMeter) -> None:
    child = dial(listener, "leave")
    peer, connection = talk(listener, None)
    peer.close()
    assert child.wait(30) == 0
    assert meter.take([connection]) == {}


@pytest.mark.parametrize(
    ("grpc", "expected"),
    [
        ("ipv4:10.0.0.7:41", "10.0.0.7 41"),
        ("ipv6:%5B::1%5D:4711", "::1 4711"),
        ("ipv6:[::ffff:10.0.0.7]:41", "10.0.0.7 41"),
        ("ipv6:%5Bfe80::1%25eth0%5D:9", "fe80::1%eth0 9"),
    ],
)
def test_grpc_peer_names_are_normalized(grpc: str, expected: str) -> None:
    assert parse_peer(grpc) == expected


@pytest.mark.parametrize("datagram", [b"", b"\0" * 7, b"\xff" * 64, b"\x10\0\0\0\x14" + b"\0" * 11, b"\0" * 400])
def test_malformed_netlink_messages_are_skipped(datagram: bytes) -> None:
    assert list(_parse(datagram)) == []
    assert sum(len(body) for _, body in _messages(datagram)) <= len(datagram)
