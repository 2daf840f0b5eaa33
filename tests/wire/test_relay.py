"""The relay forwards chunks unchanged, propagates back-pressure, and ends when either side ends."""

from __future__ import annotations

import asyncio
import socket as socketlib
import threading
from pathlib import Path
from typing import Any

import pytest

from farshore.core.errors import RefusedError, WireError
from farshore.wire.io import IoThread
from farshore.wire.local import open_local, serve_local
from farshore.wire.relay import relay


@pytest.fixture
def socket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("r") / "s"


class Node:
    """The node's side of a relay, with queues instead of a connection."""

    def __init__(self) -> None:
        self.up: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.down: asyncio.Queue[bytes] = asyncio.Queue()

    async def read(self) -> bytes | None:
        return await self.up.get()

    async def write(self, chunk: bytes) -> None:
        await self.down.put(chunk)


def test_chunks_keep_their_bytes_and_boundaries(socket: Path) -> None:
    async def scenario() -> None:
        async def serve(ticket: str, read: Any, write: Any) -> None:
            await write(ticket.encode())
            while (chunk := await read()) is not None:
                await write(bytes(chunk)[::-1])

        server = await serve_local(socket, serve)
        assert socket.stat().st_mode & 0o777 == 0o600
        node = Node()
        sent = [b"a", b"bc" * 1000, bytes(range(256)) * 4096]
        for chunk in sent:
            node.up.put_nowait(chunk)
        node.up.put_nowait(None)
        await asyncio.wait_for(relay("the ticket", node.read, node.write, socket), 10)
        got = [node.down.get_nowait() for _ in range(node.down.qsize())]
        assert got == [b"the ticket", *(chunk[::-1] for chunk in sent)]
        server.close()

    asyncio.run(scenario())


def test_a_run_process_that_does_not_read_stops_the_relay_from_reading(socket: Path) -> None:
    async def scenario() -> int:
        taken = 0

        async def serve(ticket: str, read: Any, write: Any) -> None:
            await asyncio.Event().wait()

        async def endless() -> bytes:
            nonlocal taken
            taken += 1
            return bytes(1 << 20)

        server = await serve_local(socket, serve)
        task = asyncio.create_task(relay("t", endless, Node().write, socket))
        await asyncio.sleep(1.0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        server.close()
        return taken

    # At most the capacity of the buffers of the socket and both ends.
    assert 1 <= asyncio.run(scenario()) <= 16


def test_a_refusal_is_forwarded(socket: Path) -> None:
    async def scenario() -> None:
        async def serve(ticket: str, read: Any, write: Any) -> None:
            raise RefusedError("the run has ended")

        server = await serve_local(socket, serve)
        with pytest.raises(RefusedError, match="the run has ended"):
            await asyncio.wait_for(relay("t", Node().read, Node().write, socket), 10)
        server.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("side", ["node", "run"])
def test_the_end_of_one_side_ends_the_other(socket: Path, side: str) -> None:
    async def scenario() -> None:
        ended = asyncio.Event()

        async def serve(ticket: str, read: Any, write: Any) -> None:
            await write(b"hello")
            if side == "node":
                assert await read() is None
            ended.set()

        async def broken() -> bytes:
            await asyncio.sleep(0.1)
            raise ConnectionResetError("the node is gone")

        node = Node()
        server = await serve_local(socket, serve)
        await asyncio.wait_for(relay("t", broken if side == "node" else node.read, node.write, socket), 10)
        await asyncio.wait_for(ended.wait(), 10)
        assert node.down.get_nowait() == b"hello"
        server.close()

    asyncio.run(scenario())


def test_relaying_to_a_run_process_that_does_not_listen_raises_os_error(socket: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        asyncio.run(relay("t", Node().read, Node().write, socket))


def test_a_chunk_that_announces_too_many_bytes_is_rejected(socket: Path) -> None:
    async def scenario() -> None:
        caught: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

        async def serve(ticket: str, read: Any, write: Any) -> None:
            try:
                await read()
            except WireError as error:
                caught.set_result(error)

        server = await serve_local(socket, serve)
        client = socketlib.socket(socketlib.AF_UNIX)
        client.connect(str(socket))
        client.sendall((1).to_bytes(4, "little") + b"t" + (1 << 31).to_bytes(4, "little"))
        assert "announces a chunk of 2147483648 bytes" in str(await asyncio.wait_for(caught, 10))
        client.close()
        server.close()

    asyncio.run(scenario())


def test_a_stopped_loop_ends_local_connections_without_logging(socket: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A run process that fails stops its loop while nodes are connected; this must not be logged as an error."""
    began = threading.Event()

    async def serve(ticket: str, read: Any, write: Any) -> None:
        began.set()
        await asyncio.Event().wait()

    with IoThread("client") as client:
        with IoThread("server") as server:
            server.call(serve_local(socket, serve))
            client.call(open_local(socket, "ticket"))
            assert began.wait(5)
        assert caplog.records == []
