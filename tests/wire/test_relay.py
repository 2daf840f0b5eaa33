"""The relay carries chunks as they are, no faster than they are taken, and ends when either side does."""

from __future__ import annotations

import asyncio
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
    """The node's side of a relay, by hand."""

    def __init__(self) -> None:
        self.up: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.down: asyncio.Queue[bytes] = asyncio.Queue()

    async def read(self) -> bytes | None:
        return await self.up.get()

    async def write(self, chunk: bytes) -> None:
        await self.down.put(chunk)


def test_chunks_keep_their_bytes_and_boundaries(socket: Path) -> None:
    async def scene() -> None:
        async def serve(ticket: str, read: Any, write: Any) -> None:
            await write(ticket.encode())
            while (chunk := await read()) is not None:
                await write(chunk[::-1])

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

    asyncio.run(scene())


def test_a_run_process_that_does_not_read_stops_the_relay_from_reading(socket: Path) -> None:
    async def scene() -> int:
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

    # What the buffers of the socket and of either end hold, and no more.
    assert 1 <= asyncio.run(scene()) <= 16


def test_a_refusal_comes_through(socket: Path) -> None:
    async def scene() -> None:
        async def serve(ticket: str, read: Any, write: Any) -> None:
            raise RefusedError("the run has ended")

        server = await serve_local(socket, serve)
        with pytest.raises(RefusedError, match="the run has ended"):
            await asyncio.wait_for(relay("t", Node().read, Node().write, socket), 10)
        server.close()

    asyncio.run(scene())


@pytest.mark.parametrize("who", ["node", "run"])
def test_the_end_of_one_side_ends_the_other(socket: Path, who: str) -> None:
    async def scene() -> None:
        ended = asyncio.Event()

        async def serve(ticket: str, read: Any, write: Any) -> None:
            await write(b"hello")
            if who == "node":
                assert await read() is None
            ended.set()

        async def broken() -> bytes:
            await asyncio.sleep(0.1)
            raise ConnectionResetError("the node is gone")

        node = Node()
        server = await serve_local(socket, serve)
        await asyncio.wait_for(relay("t", broken if who == "node" else node.read, node.write, socket), 10)
        await asyncio.wait_for(ended.wait(), 10)
        assert node.down.get_nowait() == b"hello"
        server.close()

    asyncio.run(scene())


def test_a_run_process_that_does_not_listen_is_an_os_error(socket: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        asyncio.run(relay("t", Node().read, Node().write, socket))


def test_a_chunk_that_announces_too_much_is_refused(socket: Path) -> None:
    async def scene() -> None:
        caught: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

        async def serve(ticket: str, read: Any, write: Any) -> None:
            try:
                await read()
            except WireError as error:
                caught.set_result(error)

        server = await serve_local(socket, serve)
        _, _, writer = await open_local(socket, "t")
        writer.write((1 << 31).to_bytes(4, "little"))
        assert "announces a chunk of 2147483648 bytes" in str(await asyncio.wait_for(caught, 10))
        writer.close()
        server.close()

    asyncio.run(scene())


def test_a_stopped_loop_ends_local_connections_without_a_word(socket: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A run process that fails stops its loop while nodes are still connected; that is no news."""
    began = threading.Event()

    async def serve(ticket: str, read: Any, write: Any) -> None:
        began.set()
        await asyncio.Event().wait()

    with IoThread("far") as far:
        with IoThread("near") as near:
            near.call(serve_local(socket, serve))
            far.call(open_local(socket, "ticket"))
            assert began.wait(5)
        assert caplog.records == []
