"""What the wire costs: channels against raw gRPC, directly and through the relay, and a thousand idle nodes.

Raw = messages of 1 MiB over the same interface (``grpc.aio``) between two plain processes. A channel carries the same
bytes as messages between two programs: packed, numbered, summed up, kept until taken, unpacked. Processes with channels
keep freed memory (``wire/allocator.py``), which alone makes gRPC faster where page faults are dear: *raw, memory
kept* is printed beside, and so is the ratio to it. All run in turns, and each ratio is taken within a turn, since other
processes disturb both alike; the median counts.

    python benchmarks/wire.py --json wire.json
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import psutil
from _common import Gate, Table, finish, gate, parser

from farshore.core.message import Message, Tensor
from farshore.wire.allocator import keep_freed_memory
from farshore.wire.channel import Channel
from farshore.wire.grpc_attach import METHOD, OPTIONS, TICKET, Dialer, attach_handler
from farshore.wire.io import IoThread
from farshore.wire.local import serve_local
from farshore.wire.pump import Read, Write, pump
from farshore.wire.relay import relay

MIB = 1 << 20
#: Different buffers in turn, together larger than a cache, as a program's tensors are.
BUFFERS = 32
RAW = "raw"
_SPAWN = multiprocessing.get_context("spawn")


# ---- the server's process --------------------------------------------------------------------------------------------


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
            mine, theirs = _SPAWN.Pipe()
            process = _SPAWN.Process(target=target, args=(theirs, argument), daemon=True)
            process.start()
            started[name] = Process(process, mine, mine.recv())
        yield started
    finally:
        for running in started.values():
            running.pipe.send("stop")
            running.process.join(10)
            running.process.kill()


# ---- the node's side -------------------------------------------------------------------------------------------------


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


def _over_channel(channel: Channel, echo: bool, size: int, count: int) -> float:
    """Seconds for ``count`` messages with an array of ``size`` bytes."""
    arrays = [np.full(size, i, np.uint8) for i in range(max(1, BUFFERS * MIB // size))]

    def send() -> None:
        for i in range(count):
            channel.send(Message("echo" if echo else "count", tensors={"a": Tensor(arrays[i % len(arrays)])}))
        channel.send(Message("last"))

    start = time.perf_counter()
    sender = threading.Thread(target=send, name="sender")
    sender.start()
    while channel.receive(120).kind != "last":
        pass
    taken = time.perf_counter() - start
    sender.join()
    return taken


@dataclass
class Figures:
    """MiB/s by name, one entry a turn."""

    rates: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, mib: float, seconds: float) -> None:
        """One more turn of ``name``."""
        self.rates.setdefault(name, []).append(mib / seconds)

    def median(self, name: str) -> float:
        """Median rate in MiB/s."""
        return statistics.median(self.rates[name])

    def ratio(self, name: str, to: str) -> float:
        """Median over the turns of ``name`` / ``to``."""
        return statistics.median(a / b for a, b in zip(self.rates[name], self.rates[to], strict=True))


def throughput(turns: int, mib: int) -> Figures:
    """Raw, direct and relayed, one way and echoed, with messages of 1 and 16 MiB."""
    with tempfile.TemporaryDirectory() as folder:
        socket = f"{folder}/s"
        raws = {"raw": "", "raw, memory kept": "kept"}
        targets: dict[str, Any] = {"run": (serve, socket), "relay": (orchestrate, socket)}
        for name, kept in raws.items():
            targets |= {name: (raw_server, kept), f"{name} node": (raw_node, kept)}
        with processes(**targets) as far, IoThread("node-io") as io:
            channels = {}
            for route, port in (("direct", far["run"].port), ("relay", far["relay"].port)):
                channels[route] = Channel("server", route, "node")
                Dialer(channels[route], io, f"127.0.0.1:{port}", route).start()
            figures = Figures()
            for turn in range(turns + 1):
                for way in ("one way", "echo"):
                    for name, seconds in _turn(way, raws, far, channels, mib):
                        if turn:  # the first warms up
                            figures.add(f"{name}, {way}", mib, seconds)
            for channel in channels.values():
                channel.close()
    return figures


def _turn(
    way: str, raws: Iterable[str], far: dict[str, Process], channels: dict[str, Channel], mib: int
) -> Iterator[tuple[str, float]]:
    for name in raws:
        yield name, far[f"{name} node"].ask((far[name].port, way.replace(" ", "_"), mib))
    for route, size in (("direct", 1), ("direct", 16), ("relay", 1), ("relay", 16)):
        yield f"{route}, {size} MiB", _over_channel(channels[route], way == "echo", size * MIB, mib // size)


# ---- copies ----------------------------------------------------------------------------------------------------------


def copies(size: int = 16 * MIB) -> dict[str, float]:
    """Times that a payload of ``size`` bytes is copied by the channel, on either side: fresh memory / payload.

    Counted from what ``tracemalloc`` sees allocated at the peak, less what was there before.
    """
    import tracemalloc

    from farshore.wire.chunks import Assembler, cut
    from farshore.wire.frame import FrameType, make_prefix
    from farshore.wire.pack import pack, unpack

    def allocated(work: Callable[[], Any]) -> tuple[float, Any]:
        tracemalloc.start()
        result = work()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak / size, result

    def send() -> tuple[bytes, ...]:
        packed = pack(message)
        prefix = make_prefix(FrameType.DATA, 0, 1, 0, packed.header, packed.payload)
        return cut(prefix, packed.header, packed.payload)

    def receive(chunks: tuple[bytes, ...]) -> Message:
        assembler = Assembler()
        ((prefix, body),) = [whole for chunk in chunks for whole in assembler.feed(chunk)]
        return unpack(body[: prefix.header_bytes], body[prefix.header_bytes :])

    counted = {}
    for name, size in (("1 MiB", MIB), ("16 MiB", size)):  # noqa: B020 - allocated() divides by it
        message = Message("m", tensors={"a": Tensor(np.ones(size, np.uint8))})
        counted[f"sent {name}"], chunks = allocated(send)
        counted[f"received {name}"], _ = allocated(lambda chunks=chunks: receive(chunks))
    return counted


# ---- idle nodes ------------------------------------------------------------------------------------------------------


@dataclass
class Idle:
    """What idle nodes cost the server's process."""

    nodes: int
    bytes_per_node: float
    cpu_share: float


def crowd(pipe: Any, port: int, count: int) -> None:
    """Many idle nodes, each with a connection of its own; answers heartbeats as nodes do."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1 << 14, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),) * 2)

    async def node(number: int) -> None:
        options = [*OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
            call: Any = channel.stream_stream(METHOD)(metadata=((TICKET, f"idle-{number}"),))

            async def read() -> bytes | None:
                chunk = await call.read()
                return None if chunk is grpc.aio.EOF else chunk

            await pump(Channel("server", f"idle-{number}", "node"), read, call.write)

    async def all_of_them() -> None:
        tasks = []
        for number in range(count):
            tasks.append(asyncio.create_task(node(number)))
            if number % 50 == 49:
                await asyncio.sleep(0.2)
        await asyncio.sleep(3)
        pipe.send(sum(not task.done() for task in tasks))
        await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
        for task in tasks:
            task.cancel()

    asyncio.run(all_of_them())


def idle(far: Process, count: int, seconds: float) -> Idle:
    """Attach ``count`` idle nodes and watch the server for ``seconds``, heartbeats included."""
    _, before = far.usage()
    mine, theirs = _SPAWN.Pipe()
    process = _SPAWN.Process(target=crowd, args=(theirs, far.port, count), daemon=True)
    process.start()
    attached = mine.recv()
    cpu, _ = far.usage()
    time.sleep(seconds)
    after, memory = far.usage()
    mine.send("stop")
    process.join(20)
    process.kill()
    return Idle(attached, (memory - before) / max(1, attached), (after - cpu) / seconds)


# ---- the report ------------------------------------------------------------------------------------------------------


def main(options: argparse.Namespace) -> int:
    """Measure, print, and judge."""
    turns, mib, count, seconds = (2, 64, 100, 3.0) if options.quick else (9, 256, 1000, 25.0)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1 << 14, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),) * 2)
    with tempfile.TemporaryDirectory() as folder, processes(run=(serve, f"{folder}/s")) as far:
        waiting = idle(far["run"], count, seconds)
    figures = throughput(turns, mib)
    copied = copies()
    return finish(
        "wire",
        options,
        scale=f"{turns} turns of {mib} MiB; {count} idle nodes for {seconds:g} s",
        claim="≥ 0.85 of raw gRPC directly; ≥ 0.4 of direct, and a gigabit, through the relay",
        figures={"mib_per_second": figures.rates, "copies": copied, "idle": vars(waiting), "cores": os.cpu_count()},
        gates=_gates(figures, waiting, count, judge=not options.quick),
        tables=_tables(figures, copied, waiting),
    )


def _gates(figures: Figures, waiting: Idle, count: int, *, judge: bool) -> Iterator[Gate]:
    for way in ("one way", "echo"):
        ratio = figures.ratio(f"direct, 16 MiB, {way}", f"raw, {way}")
        yield gate(f"channel / raw gRPC, {way}", ratio, "≥ 0.85", ratio >= 0.85 if judge else None)
        ratio = figures.ratio(f"direct, 16 MiB, {way}", f"raw, memory kept, {way}")
        yield gate(f"channel / raw gRPC that keeps memory too, {way}", ratio, "none: shown", None)
    through = figures.ratio("relay, 16 MiB, one way", "direct, 16 MiB, one way")
    yield gate("relay / direct, one way", through, "≥ 0.4", through >= 0.4 if judge else None)
    rate = figures.median("relay, 16 MiB, one way") * MIB / 1e6
    yield gate("relay, one way, MB/s", rate, "> 125", rate > 125 if judge else None)
    yield gate("idle nodes attached", waiting.nodes, f"= {count}", waiting.nodes == count)


def _tables(figures: Figures, copied: dict[str, float], waiting: Idle) -> Iterator[Table]:
    rows = [
        (
            name,
            f"{figures.median(name) * MIB / 1e6:.0f}",
            f"{figures.ratio(name, 'raw, ' + name.rpartition(', ')[2]):.2f}",
        )
        for name in figures.rates
    ]
    yield Table("Throughput over loopback", ("what", "MB/s", "/ raw"), rows)
    yield Table(
        "Copies of the payload by the channel",
        ("side, message", "copies"),
        [(name, f"{count:.2f}") for name, count in copied.items()],
    )
    yield Table(
        "Idle nodes on one server",
        ("attached", "KiB per node", "share of one core"),
        [(str(waiting.nodes), f"{waiting.bytes_per_node / 1024:.0f}", f"{waiting.cpu_share:.1%}")],
    )


if __name__ == "__main__":
    sys.exit(main(parser(__doc__).parse_args()))
