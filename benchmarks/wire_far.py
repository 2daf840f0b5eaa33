"""Remote processes for ``wire.py``: a run process, a relay, and raw gRPC server and client."""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import psutil

from farshore.wire.allocator import keep_freed_memory
from farshore.wire.channel import Channel
from farshore.wire.grpc_attach import OPTIONS, attach_handler
from farshore.wire.io import IoThread
from farshore.wire.local import serve_local
from farshore.wire.pump import Read, Write, pump
from farshore.wire.relay import relay

MIB = 1 << 20
#: Number of different buffers sent in turn; together larger than the cache, like a program's tensors.
BUFFERS = 32
RAW = "raw"
SPAWN = multiprocessing.get_context("spawn")


def serve(pipe: Any, socket: str) -> None:
    """Run process: data port and local socket; its programs echo or count messages."""
    channels: dict[str, Channel] = {}

    async def data(ticket: str, read: Read, write: Write) -> None:
        if ticket not in channels:
            channels[ticket] = Channel(ticket, ticket, "server")
            if not ticket.startswith("idle"):
                threading.Thread(
                    target=_program, args=(channels[ticket],), name=f"program {ticket}", daemon=True
                ).start()
        await pump(channels[ticket], read, write)

    with IoThread("server-io") as io:
        server, port = io.call(_listen(attach_handler(data)))
        io.call(serve_local(Path(socket), data))
        pipe.send(port)
        while (request := pipe.recv()) != "stop":
            assert request == "usage"
            pipe.send((time.process_time(), psutil.Process().memory_info().rss))
        io.call(server.stop(None))


def run_relay(pipe: Any, socket: str) -> None:
    """The relay of a server."""

    async def data(ticket: str, read: Read, write: Write) -> None:
        await relay(ticket, read, write, Path(socket))

    with IoThread("relay-io") as io:
        server, port = io.call(_listen(attach_handler(data)))
        pipe.send(port)
        pipe.recv()
        io.call(server.stop(None))


def raw_server(pipe: Any, kept: str) -> None:
    """Raw gRPC server, with or without the allocator setting."""
    if kept:
        keep_freed_memory()

    async def run() -> None:
        server, port = await _listen(_raw_service())
        pipe.send(port)
        await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
        await server.stop(None)

    asyncio.run(run())


def raw_node(pipe: Any, kept: str) -> None:
    """Client of :func:`raw_server`; measures on request."""
    if kept:
        keep_freed_memory()
    pipe.send(0)
    while (request := pipe.recv()) != "stop":
        pipe.send(asyncio.run(_raw(*request)))


async def _raw(port: int, method: str, count: int) -> float:
    """Measure the seconds for ``count`` raw messages of 1 MiB, echoed or not."""
    buffers = [bytes([i]) * MIB for i in range(BUFFERS)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS) as channel:
        call = channel.stream_stream(f"/{RAW}/{method}")()
        await call.wait_for_connection()

        async def write() -> None:
            for i in range(count):
                await call.write(buffers[i % BUFFERS])
            await call.done_writing()

        start = time.perf_counter()
        writer = asyncio.create_task(write())
        while await call.read() is not grpc.aio.EOF:
            pass
        await writer
        return time.perf_counter() - start


def _program(channel: Channel) -> None:
    """Server program: echoes or counts messages."""
    while True:
        message = channel.receive()
        if message.kind in ("echo", "last"):
            channel.send(message)


def _raw_service() -> Any:
    async def one_way(_: Any, context: Any) -> None:
        while await context.read() is not grpc.aio.EOF:
            pass
        await context.write(b"")

    async def echo(_: Any, context: Any) -> None:
        while (chunk := await context.read()) is not grpc.aio.EOF:
            await context.write(chunk)

    handlers = {name: grpc.stream_stream_rpc_method_handler(f) for name, f in (("one_way", one_way), ("echo", echo))}
    return grpc.method_handlers_generic_handler(RAW, handlers)


async def _listen(*handlers: Any) -> tuple[grpc.aio.Server, int]:
    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers(handlers)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, port


@dataclass
class Process:
    """A child process, a pipe to it, and the port on which it listens."""

    process: Any
    pipe: Any
    port: int

    def ask(self, request: Any) -> Any:
        """Send a request and return the answer."""
        self.pipe.send(request)
        return self.pipe.recv()

    def usage(self) -> tuple[float, int]:
        """CPU seconds and resident bytes of a :func:`serve` process so far."""
        seconds, memory = self.ask("usage")
        return float(seconds), int(memory)


@contextmanager
def processes(**targets: tuple[Callable[..., None], Any]) -> Iterator[dict[str, Process]]:
    """Start functions in child processes, which stop at the end of the block."""
    started: dict[str, Process] = {}
    try:
        for name, (target, argument) in targets.items():
            parent_end, child_end = SPAWN.Pipe()
            process = SPAWN.Process(target=target, args=(child_end, argument), daemon=True)
            process.start()
            started[name] = Process(process, parent_end, parent_end.recv())
        yield started
    finally:
        for running in started.values():
            running.pipe.send("stop")
            running.process.join(10)
            running.process.kill()
