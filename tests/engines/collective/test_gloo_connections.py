"""Connections of gloo are shut down once, whichever thread does it and whatever other threads register meanwhile."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from farshore.engines.collective import gloo_backend


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A registered TCP connection: this side, and its peer."""
    monkeypatch.setattr(gloo_backend, "_CONNECTIONS", {})
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = socket.create_connection(server.getsockname())
        there, _ = server.accept()
    there.settimeout(10)
    gloo_backend._CONNECTIONS[here.fileno()] = gloo_backend._connections()[here.fileno()]
    with here, there:
        yield here, there


def test_the_peer_of_an_aborted_connection_sees_its_end(connection: tuple[socket.socket, socket.socket]) -> None:
    _, there = connection
    gloo_backend.abort_connections()
    assert there.recv(1) == b""
    assert gloo_backend._CONNECTIONS == {}


def test_a_connection_that_another_thread_registers_meanwhile_is_kept(
    connection: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, there = connection
    found = gloo_backend._connections()

    class Registering(dict[int, Any]):
        """What psutil has found; another thread registers a connection while it is compared."""

        def get(self, key: int, default: Any = None) -> Any:
            gloo_backend._CONNECTIONS[1 << 20] = ("new", "new")
            return super().get(key, default)

    monkeypatch.setattr(gloo_backend, "_connections", lambda: Registering(found))
    gloo_backend.abort_connections()
    assert there.recv(1) == b""
    assert list(gloo_backend._CONNECTIONS) == [1 << 20]


def test_a_descriptor_that_was_reused_is_left_alone(connection: tuple[socket.socket, socket.socket]) -> None:
    here, there = connection
    gloo_backend._CONNECTIONS[here.fileno()] = ("another", "address")
    gloo_backend.abort_connections()
    here.sendall(b"x")
    assert there.recv(1) == b"x"
