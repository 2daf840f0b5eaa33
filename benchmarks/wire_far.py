"""The far ends that ``wire.py`` measures against, each a process of its own: a run process, a relay, raw gRPC."""

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
#: Different buffers in turn, together larger than a cache, as a program's tensors are.
BUFFERS = 32
RAW = "raw"
SPAWN = multiprocessing.get_context("spawn")


def serve(pipe: Any, socket: str) -> None:
    """A run process: raw services, a data port, the local socket; programs echo, or count."""
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
        while (asked := pipe.recv()) != "stop":
            assert asked == "usage"
            pipe.send((time.process_time(), psutil.Process().memory_info().rss))
        io.call(server.stop(None))


def orchestrate(pipe: Any, socket: str) -> None:
    """An orchestrator, as far as the relay goes."""

    async def data(ticket: str, read: Read, write: Write) -> None:
        await relay(ticket, read, write, Path(socket))

    with IoThread("relay-io") as io:
        server, port = io.call(_listen(attach_handler(data)))
        pipe.send(port)
        pipe.recv()
        io.call(server.stop(None))


def raw_server(pipe: Any, kept: str) -> None:
    """Raw gRPC, with or without the allocator's setting."""
    if kept:
        keep_freed_memory()

    async def run() -> None:
        server, port = await _listen(_raw_service())
        pipe.send(port)
        await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
        await server.stop(None)

    asyncio.run(run())


def raw_node(pipe: Any, kept: str) -> None:
    """The client of :func:`raw_server`; measures when told."""
    if kept:
        keep_freed_memory()
    pipe.send(0)
    while (asked := pipe.recv()) != "stop":
        pipe.send(asyncio.run(_raw(*asked)))


async def _raw(port: int, method: str, count: int) -> float:
    """Seconds for ``count`` raw messages of 1 MiB, echoed or not."""
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
    """The server program: counts messages, or sends each back."""
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
    """A process at the other end of a pipe, and the port that it listens on."""

    process: Any
    pipe: Any
    port: int

    def ask(self, what: Any) -> Any:
        """Send ``what``; returns the answer."""
        self.pipe.send(what)
        return self.pipe.recv()

    def usage(self) -> tuple[float, int]:
        """Processor seconds and resident bytes of a :func:`serve` process so far."""
        seconds, memory = self.ask("usage")
        return float(seconds), int(memory)


@contextmanager
def processes(**targets: tuple[Callable[..., None], Any]) -> Iterator[dict[str, Process]]:
    """Start functions in processes of their own; they end with the block."""
    started: dict[str, Process] = {}
    try:
        for name, (target, argument) in targets.items():
            mine, theirs = SPAWN.Pipe()
            process = SPAWN.Process(target=target, args=(theirs, argument), daemon=True)
            process.start()
            started[name] = Process(process, mine, mine.recv())
        yield started
    finally:
        for running in started.values():
            running.pipe.send("stop")
            running.process.join(10)
            running.process.kill()
