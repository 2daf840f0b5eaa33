"""The meter of socket bytes counts what another process really sent, closed connections included."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from farshore.edge.sockets import SocketMeter, _messages, _parse

DIALLER = """
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as s:
    s.sendall(b"u" * 300_000)
    got = 0
    while got < 70_000:
        got += len(s.recv(65536))
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
def meter(listener: socket.socket) -> Iterator[SocketMeter]:
    opened = SocketMeter.open(listener.getsockname()[1])
    if opened is None:
        pytest.skip("this system does not count the bytes of sockets")
    with opened:
        yield opened


def talk(listener: socket.socket) -> socket.socket:
    peer, _ = listener.accept()
    got = 0
    while got < 300_000:
        got += len(peer.recv(65536))
    peer.sendall(b"d" * 70_000)
    return peer


def dial(listener: socket.socket, how: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", DIALLER, str(listener.getsockname()[1]), how])


def test_a_closed_connection_of_another_process_is_counted_to_the_byte(
    listener: socket.socket, meter: SocketMeter
) -> None:
    child = dial(listener, "leave")
    with talk(listener) as peer:
        assert peer.recv(1) == b""
    assert child.wait(30) == 0
    told = meter.read()
    # The kernel counts the opening and closing flags as a byte each.
    assert (told.connections, abs(told.up - 300_000) <= 2, abs(told.down - 70_000) <= 2) == (1, True, True)


def test_open_and_closed_connections_add_up_and_reading_twice_changes_nothing(
    listener: socket.socket, meter: SocketMeter
) -> None:
    first = dial(listener, "leave")
    talk(listener).close()
    assert first.wait(30) == 0
    second = dial(listener, "stay")
    with talk(listener) as peer:
        told = meter.read()
        assert told.connections == 2
        assert abs(told.up - 600_000) <= 4
        assert meter.read() == told
        peer.sendall(b"x")
    assert second.wait(30) == 0
    assert meter.read().connections == 2


def test_own_connections_and_other_ports_do_not_count(listener: socket.socket, meter: SocketMeter) -> None:
    with socket.create_connection(listener.getsockname()) as own:
        own.sendall(b"x" * 1000)
        assert meter.read().connections == 0


@pytest.mark.parametrize("rubbish", [b"", b"\0" * 7, b"\xff" * 64, b"\x10\0\0\0\x14" + b"\0" * 11, b"\0" * 400])
def test_rubbish_from_the_kernel_is_skipped(rubbish: bytes) -> None:
    assert list(_parse(rubbish)) == []
    assert sum(len(body) for _, body in _messages(rubbish)) <= len(rubbish)
