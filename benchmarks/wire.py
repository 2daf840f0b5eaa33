"""Cost of the wire: throughput of channels, direct and relayed, against raw gRPC; cost of a thousand idle nodes.

Raw = messages of 1 MiB with the same API (``grpc.aio``) between two plain processes. A channel carries the same bytes
as messages between two programs: packed, numbered, checksummed, kept until acknowledged, unpacked. Processes with
channels keep freed memory (``wire/allocator.py``), which alone makes gRPC faster where page faults are expensive; so
*raw, memory kept* and the ratio to it are reported too. Variants run in turns, and each ratio is taken within a turn,
since other processes disturb both alike; the median counts.

    python benchmarks/wire.py --json wire.json
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from _common import Gate, Table, finish, gate, parser
from wire_far import BUFFERS, MIB, Process, processes, raw_node, raw_server, run_relay, serve
from wire_idle import Idle, measure_idle

from farshore.core.message import Message, Tensor
from farshore.wire.channel import Channel
from farshore.wire.grpc_attach import Dialer
from farshore.wire.io import IoThread

# ---- node side -------------------------------------------------------------------------------------------------


def _over_channel(channel: Channel, echo: bool, size: int, count: int) -> float:
    """Measure the seconds for ``count`` messages with an array of ``size`` bytes."""
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
    """Throughput in MiB/s by name, one entry per turn."""

    rates: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, mib: float, seconds: float) -> None:
        """Add a turn of ``name``."""
        self.rates.setdefault(name, []).append(mib / seconds)

    def median(self, name: str) -> float:
        """Median rate in MiB/s."""
        return statistics.median(self.rates[name])

    def ratio(self, name: str, to: str) -> float:
        """Median over turns of ``name`` / ``to``."""
        return statistics.median(a / b for a, b in zip(self.rates[name], self.rates[to], strict=True))


def throughput(rounds: int, turns: int, mib: int) -> Figures:
    """Measure raw, direct and relayed throughput, one way and echoed, with messages of 1 and 16 MiB.

    Every round has new processes: the memory layout of a process can make raw gRPC up to twice as fast.
    """
    figures = Figures()
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            _round(figures, f"{folder}/s", turns, mib)
    return figures


def _round(figures: Figures, socket: str, turns: int, mib: int) -> None:
    raws = {"raw": "", "raw, memory kept": "kept"}
    targets: dict[str, Any] = {"run": (serve, socket), "relay": (run_relay, socket)}
    for name, kept in raws.items():
        targets |= {name: (raw_server, kept), f"{name} node": (raw_node, kept)}
    with processes(**targets) as remotes, IoThread("node-io") as io:
        channels = {}
        for route, port in (("direct", remotes["run"].port), ("relay", remotes["relay"].port)):
            channels[route] = Channel("server", route, "node")
            Dialer(channels[route], io, f"127.0.0.1:{port}", route).start()
        for turn in range(turns + 1):
            for way in ("one way", "echo"):
                for name, seconds in _turn(way, raws, remotes, channels, mib):
                    if turn:  # the first is a warm-up
                        figures.add(f"{name}, {way}", mib, seconds)
        for channel in channels.values():
            channel.close()


def _turn(
    way: str, raws: Iterable[str], remotes: dict[str, Process], channels: dict[str, Channel], mib: int
) -> Iterator[tuple[str, float]]:
    for name in raws:
        yield name, remotes[f"{name} node"].ask((remotes[name].port, way.replace(" ", "_"), mib))
    for route, size in (("direct", 1), ("direct", 16), ("relay", 1), ("relay", 16)):
        yield f"{route}, {size} MiB", _over_channel(channels[route], way == "echo", size * MIB, mib // size)


# ---- copies ----------------------------------------------------------------------------------------------------------


def copies(size: int = 16 * MIB) -> dict[str, float]:
    """Number of copies of the payload made by the channel on either side: allocated memory / payload.

    Measured with ``tracemalloc`` as the peak of newly allocated memory.
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


# ---- the report ------------------------------------------------------------------------------------------------------


def main(options: argparse.Namespace) -> int:
    """Measure and report."""
    rounds, turns, mib, count, seconds = (1, 2, 64, 100, 3.0) if options.quick else (7, 3, 256, 1000, 25.0)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1 << 14, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),) * 2)
    with tempfile.TemporaryDirectory() as folder, processes(run=(serve, f"{folder}/s")) as remotes:
        idle_cost = measure_idle(remotes["run"], count, seconds)
    figures = throughput(rounds, turns, mib)
    copied = copies()
    return finish(
        "wire",
        options,
        scale=f"{rounds} x {turns} turns of {mib} MiB; {count} idle nodes for {seconds:g} s",
        claim="goals: direct ≥ 0.85 of raw gRPC; through the relay ≥ 0.75 of direct and ≥ 1 Gbit/s",
        figures={"mib_per_second": figures.rates, "copies": copied, "idle": vars(idle_cost), "cores": os.cpu_count()},
        gates=_gates(figures, idle_cost, count, judge=not options.quick),
        tables=_tables(figures, copied, idle_cost),
    )


def _gates(figures: Figures, idle_cost: Idle, count: int, *, judge: bool) -> Iterator[Gate]:
    for way in ("one way", "echo"):
        ratio = figures.ratio(f"direct, 16 MiB, {way}", f"raw, {way}")
        yield gate(f"channel / raw gRPC, {way}", ratio, "≥ 0.85", ratio >= 0.85 if judge else None)
        ratio = figures.ratio(f"direct, 16 MiB, {way}", f"raw, memory kept, {way}")
        yield gate(f"channel / raw gRPC with memory kept, {way}", ratio, "≥ 0.85", ratio >= 0.85 if judge else None)
        through = figures.ratio(f"relay, 16 MiB, {way}", f"direct, 16 MiB, {way}")
        yield gate(f"relay / direct, {way}", through, "≥ 0.75", through >= 0.75 if judge else None)
    rate = figures.median("relay, 16 MiB, one way") * MIB / 1e6
    yield gate("relay, one way, MB/s", rate, "> 125", rate > 125 if judge else None)
    yield gate("idle nodes attached", idle_cost.nodes, f"= {count}", idle_cost.nodes == count)


def _tables(figures: Figures, copied: dict[str, float], idle_cost: Idle) -> Iterator[Table]:
    rows = [
        (
            name,
            f"{figures.median(name) * MIB / 1e6:.0f}",
            f"{figures.ratio(name, 'raw, ' + name.rpartition(', ')[2]):.2f}",
        )
        for name in figures.rates
    ]
    yield Table("Throughput over loopback", ("transfer", "MB/s", "/ raw"), rows)
    yield Table(
        "Copies of the payload by the channel",
        ("side, message", "copies"),
        [(name, f"{count:.2f}") for name, count in copied.items()],
    )
    yield Table(
        "Idle nodes on one server",
        ("attached", "KiB per node", "share of one core"),
        [(str(idle_cost.nodes), f"{idle_cost.bytes_per_node / 1024:.0f}", f"{idle_cost.cpu_share:.1%}")],
    )


if __name__ == "__main__":
    sys.exit(main(parser(__doc__).parse_args()))
