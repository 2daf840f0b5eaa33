"""Connections over unix sockets: chunks keep their boundaries, nobody is starved, and failures of accept pass."""

from __future__ import annotations

import asyncio
import errno
import socket as socketlib
from pathlib import Path
from typing import Any

import pytest

import farshore.wire.local
from farshore.wire.local import LocalConnection, open_local, serve_local

SIZES = [0, 1, 5, 1 << 10, 1 << 20, (1 << 20) + (1 << 16), 1 << 21]


@pytest.fixture
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("l") / "s"


async def _echo(ticket: str, read: Any, write: Any) -> None:
    while (chunk := await read()) is not None:
        await write(chunk)


def test_chunks_of_any_size_come_back_whole_and_in_order_in_both_directions_at_once(path: Path) -> None:
    async def scenario() -> None:
        server = await serve_local(path, _echo)
        connection = await open_local(path, "t")
        sent = [bytes([i % 251]) * size for i, size in enumerate(SIZES * 6)]
        received: list[bytes] = []

        async def receive() -> None:
            while (chunk := await connection.read()) is not None:
                received.append(bytes(chunk))

        reader = asyncio.create_task(receive())
        for chunk in sent:
            await connection.write(chunk)
        connection.end_writing()
        await asyncio.wait_for(reader, 20)
        assert received == sent
        connection.close()
        server.close()

    asyncio.run(scenario())


def test_a_peer_that_never_pauses_does_not_starve_the_loop(path: Path) -> None:
    """Reading returns at once while data is there; other connections of the loop must get their turn all the same."""
    turns: list[int] = []

    async def scenario() -> None:
        here, there = socketlib.socketpair()
        count = 100
        there.sendall(((10).to_bytes(4, "little") + bytes(10)) * count)
        there.close()
        connection = LocalConnection(here)
        read = 0

        async def other() -> None:
            while True:
                turns.append(read)
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        while await connection.read() is not None:
            read += 1
        task.cancel()
        connection.close()
        assert read == count
        assert len(set(turns)) >= count  # had a turn after every chunk

    asyncio.run(scenario())


def test_ending_a_connection_wakes_its_reader(path: Path) -> None:
    async def scenario() -> None:
        server = await serve_local(path, _echo)
        connection = await open_local(path, "t")
        reader = asyncio.create_task(connection.read())
        await asyncio.sleep(0.05)
        connection.end()
        assert await asyncio.wait_for(reader, 10) is None
        connection.close()
        server.close()

    asyncio.run(scenario())


def test_what_a_peer_sent_before_it_closed_is_read_even_if_a_write_meets_the_closed_connection(path: Path) -> None:
    """Else an acknowledgement on its way out would lose the goodbye of a node that has finished."""

    async def scenario() -> None:
        here, there = socketlib.socketpair()
        connection = LocalConnection(here)
        await connection.write(b"never read, so that closing resets the connection")
        there.sendall((7).to_bytes(4, "little") + b"goodbye")
        there.close()
        for _ in range(3):
            await connection.write(b"acknowledgement")
        assert bytes(await connection.read() or b"") == b"goodbye"
        assert await connection.read() is None
        connection.close()

    asyncio.run(scenario())


def test_the_socket_of_a_killed_process_is_replaced_but_no_other_file(path: Path) -> None:
    async def scenario() -> None:
        with socketlib.socket(socketlib.AF_UNIX) as left_over:
            left_over.bind(str(path))
        server = await serve_local(path, _echo)
        connection = await open_local(path, "t")
        await connection.write(b"x")
        assert await asyncio.wait_for(connection.read(), 10) == b"x"
        connection.close()
        server.close()
        other = path.with_name("notes")
        other.write_text("keep")
        with pytest.raises(OSError, match="in use"):
            await serve_local(other, _echo)
        assert other.read_text() == "keep"

    asyncio.run(scenario())


def test_connections_are_accepted_again_after_accept_has_failed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many open files fail every accept until some are closed; the run must not lose its nodes for good."""
    monkeypatch.setattr(farshore.wire.local, "_ACCEPT_PAUSE", 0.01)
    failures = iter([OSError(errno.EMFILE, "Too many open files")] * 3)

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        accept = loop.sock_accept

        async def failing(sock: Any) -> Any:
            if (failure := next(failures, None)) is not None:
                raise failure
            return await accept(sock)

        monkeypatch.setattr(loop, "sock_accept", failing)
        server = await serve_local(path, _echo)
        connection = await open_local(path, "t")
        await connection.write(b"x")
        assert await asyncio.wait_for(connection.read(), 10) == b"x"
        connection.close()
        server.close()

    asyncio.run(scenario())
