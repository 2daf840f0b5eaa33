"""The meter of socket bytes counts what a connection really carried, closed ones included."""

from __future__ import annotations

import select
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from farshore.wire.tcp_info import Accepted, SocketBytes, SocketMeter, _messages, _parse, peer_of

DIALLER = """
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as s:
    s.sendall(b"u" * 300_000)
    got = 0
    while got < 70_000:
        got += len(s.recv(65536))
    s.sendall(b"!")  # and with it the acknowledgement of all that came
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
        pytest.skip("this system does not count the bytes of sockets")
    with opened:
        yield opened


def talk(listener: socket.socket, meter: SocketMeter | None) -> tuple[socket.socket, Accepted]:
    peer, (host, port) = listener.accept()
    connection = Accepted(listener.getsockname()[1], peer_of(f"ipv4:{host}:{port}"))
    if meter is not None:
        meter.watch(connection)
    got = 0
    while got < 300_000:
        got += len(peer.recv(65536))
    peer.sendall(b"d" * 70_000)
    assert peer.recv(1) == b"!"
    return peer, connection


def dial(listener: socket.socket, how: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", DIALLER, str(listener.getsockname()[1]), how])


def check(told: SocketBytes | None) -> None:
    assert told is not None
    # The kernel counts the opening and closing flags as a byte each.
    assert (abs(told.up - 300_001) <= 2, abs(told.down - 70_000) <= 2) == (True, True), told


def test_a_closed_connection_is_counted_to_the_byte_once(listener: socket.socket, meter: SocketMeter) -> None:
    child = dial(listener, "leave")
    peer, connection = talk(listener, meter)
    assert peer.recv(1) == b""
    peer.close()
    assert child.wait(30) == 0
    assert select.select([meter], [], [], 5)[0] == [meter]
    meter.drain()
    check(meter.take([connection]).get(connection))
    assert meter.take([connection]) == {}


def test_open_connections_to_one_port_are_told_apart(listener: socket.socket, meter: SocketMeter) -> None:
    children = [dial(listener, "stay") for _ in range(2)]
    talks = [talk(listener, meter) for _ in children]
    found = meter.take([connection for _, connection in talks])
    assert len(found) == 2
    for peer, connection in talks:
        check(found[connection])
        peer.sendall(b"x")
        peer.close()
    assert [child.wait(30) for child in children] == [0, 0]


def test_connections_that_nobody_watched_are_not_remembered(listener: socket.socket, meter: SocketMeter) -> None:
    child = dial(listener, "leave")
    peer, connection = talk(listener, None)
    peer.close()
    assert child.wait(30) == 0
    assert meter.take([connection]) == {}


@pytest.mark.parametrize(
    ("grpc", "ours"),
    [
        ("ipv4:10.0.0.7:41", "10.0.0.7 41"),
        ("ipv6:%5B::1%5D:4711", "::1 4711"),
        ("ipv6:[::ffff:10.0.0.7]:41", "10.0.0.7 41"),
        ("ipv6:%5Bfe80::1%25eth0%5D:9", "fe80::1%eth0 9"),
    ],
)
def test_peers_have_one_name(grpc: str, ours: str) -> None:
    assert peer_of(grpc) == ours


@pytest.mark.parametrize("rubbish", [b"", b"\0" * 7, b"\xff" * 64, b"\x10\0\0\0\x14" + b"\0" * 11, b"\0" * 400])
def test_rubbish_from_the_kernel_is_skipped(rubbish: bytes) -> None:
    assert list(_parse(rubbish)) == []
    assert sum(len(body) for _, body in _messages(rubbish)) <= len(rubbish)
