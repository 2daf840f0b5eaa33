"""A server with many nodes for a long time: memory, file descriptors, stalls of its event loop, speed of admin calls.

One process is the server, with a timer in its event loop that records how late it fires; one holds all nodes, each with
a connection, a key and heartbeats of its own. The active ones also start a process for each run, as any node does. Runs
are short and follow one another. The first quarter of the time counts as warm-up: what the server has then, it must
still have at the end.

    python benchmarks/soak.py --minutes 20 --json soak.json
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import multiprocessing
import os
import resource
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from _common import Gate, Table, finish, gate, parser

from farshore.client.admin import AdminClient
from farshore.client.agent import Agent
from farshore.client.options import AgentOptions
from farshore.runs.states import ENDED
from farshore.server.api import ServeOptions, serve

CLAIM = "flat memory, descriptors that come back, no stall of 100 ms, admin calls under 100 ms"
_SPAWN = multiprocessing.get_context("spawn")
_SAMPLE_SECONDS, _TICK_SECONDS = 2.0, 0.01
#: Runs at a time, and nodes of each.
_AT_ONCE, _NODES = 3, 2


def _run_server(home: Path, pipe: Any) -> None:
    """Serve, and record how late a timer of the event loop fires: CPU and wall seconds."""

    async def sample() -> None:
        with (home / "stalls").open("a", buffering=1 << 12) as file:
            while True:
                cpu, wall = time.thread_time(), time.monotonic()
                await asyncio.sleep(_TICK_SECONDS)
                file.write(f"{time.thread_time() - cpu:.4f} {time.monotonic() - wall - _TICK_SECONDS:.4f}\n")

    tasks = []

    def ready(_: Any) -> None:
        tasks.append(asyncio.get_running_loop().create_task(sample()))
        pipe.send("ready")

    serve(ServeOptions(home=home, port=0, heartbeat_seconds=5.0), on_ready=ready)


def _run_nodes(address: str, token: str, folder: Path, idle: int, active: int, pipe: Any) -> None:
    """Connect all nodes; reports how many are connected, then waits for the end."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1 << 15, limit), limit))
    connected: set[str] = set()

    def agent(name: str) -> Agent:
        def on_state(state: str, detail: str) -> None:
            if state == "connected":
                connected.add(name)
            elif state == "disconnected":
                connected.discard(name)

        return Agent(AgentOptions(address=address, name=name, home=folder / name, token=token, on_state=on_state))

    async def main() -> None:
        names = [*(f"idle-{i:04}" for i in range(idle)), *(f"active-{i:03}" for i in range(active))]
        tasks = []
        for number, name in enumerate(names):
            tasks.append(asyncio.create_task(agent(name)._join_and_connect()))
            if number % 20 == 19:
                await asyncio.sleep(0.5)
        end = time.monotonic() + 120
        while len(connected) < len(names) and time.monotonic() < end:
            await asyncio.sleep(0.5)
        pipe.send(len(connected))
        await asyncio.to_thread(pipe.recv)
        pipe.send(len(connected))
        for task in tasks:
            task.cancel()

    asyncio.run(main())


@dataclass
class Samples:
    """What the server used over time: seconds, bytes that are its own (USS), descriptors, processes below it."""

    seconds: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)
    calls: list[float] = field(default_factory=list)

    def after(self, share: float) -> slice:
        """The samples after this share of the time."""
        return slice(int(len(self.seconds) * share), None)


class Sampler(threading.Thread):
    """Samples the server process, and times an operator's call: showing the run ``run_id``, once it is set."""

    def __init__(self, process: psutil.Process, home: Path) -> None:
        super().__init__(daemon=True)
        self._process, self._home = process, home
        self._ended = threading.Event()
        self.samples, self.run_id = Samples(), ""

    def run(self) -> None:
        """Sample until :meth:`stop`."""
        begun = time.monotonic()
        with AdminClient.local(self._home) as admin:
            while not self._ended.wait(_SAMPLE_SECONDS):
                self.samples.seconds.append(time.monotonic() - begun)
                self.samples.memory.append(self._process.memory_full_info().uss)
                self.samples.descriptors.append(self._process.num_fds())
                if self.run_id:
                    start = time.monotonic()
                    admin.run(self.run_id)
                    self.samples.calls.append(time.monotonic() - start)

    def stop(self) -> Samples:
        """Stop, and return the samples."""
        self._ended.set()
        self.join()
        return self.samples


def _run_many(home: Path, active: int, seconds: float, count: int, sampler: Sampler) -> tuple[int, int]:
    """Submit ``count`` short runs, a few at a time, spread over ``seconds``; return how many finished and failed."""
    names = itertools.cycle(f"active-{i:03}" for i in range(active))
    begun, submitted, finished, failed = time.monotonic(), 0, 0, 0
    open_runs: list[str] = []
    with AdminClient.local(home) as admin:
        while submitted < count or open_runs:
            due = min(count, int(count * (time.monotonic() - begun) / seconds) + 1)
            while submitted < due and len(open_runs) < _AT_ONCE:
                nodes = [next(names) for _ in range(_NODES)]
                open_runs.append(admin.submit("ping", {"rounds": 5, "kilobytes": 64}, nodes=nodes).id)
                submitted += 1
                sampler.run_id = open_runs[-1]
            time.sleep(0.25)
            for run_id in list(open_runs):
                state = admin.run(run_id).state
                if state in ENDED:
                    open_runs.remove(run_id)
                    finished, failed = finished + (state == "finished"), failed + (state != "finished")
    return finished, failed


def _stalls(home: Path, share: float) -> list[float]:
    """CPU seconds of the event loop between two ticks: not affected by other processes on a busy machine."""
    lines = (home / "stalls").read_text().splitlines()[:-1]
    return [float(line.split()[0]) for line in lines[int(len(lines) * share) :]]


@dataclass(frozen=True)
class Outcome:
    """What a soak has measured; descriptors are those of the server before the nodes came and after they have gone."""

    connected: int
    still: int
    finished: int
    failed: int
    samples: Samples
    stalls: list[float]
    before: int
    left: int


def soak(options: argparse.Namespace, room: Path) -> Outcome:
    """Start a server and all nodes, let the runs run, and stop everything."""
    home, settle = room / "server", 2 if options.quick else 15
    home.mkdir()
    mine, theirs = _SPAWN.Pipe()
    server = _SPAWN.Process(target=_run_server, args=(home, theirs))
    server.start()
    mine.recv()
    with AdminClient.local(home) as admin:
        token, address = admin.create_token(valid_seconds=7200).token, admin.address
    ours, other = _SPAWN.Pipe()
    given = address, token, room / "nodes", options.idle, options.active, other
    fleet = _SPAWN.Process(target=_run_nodes, args=given)
    process = psutil.Process(server.pid)
    before = process.num_fds()
    fleet.start()
    connected = ours.recv()
    print(f"{connected} nodes connected", flush=True)
    sampler = Sampler(process, home)
    sampler.start()
    finished, failed = _run_many(home, options.active, 60 * options.minutes, options.runs, sampler)
    time.sleep(settle)
    samples = sampler.stop()
    ours.send("end")
    still = ours.recv()
    fleet.join(60)
    time.sleep(settle)
    left, stalls = process.num_fds(), _stalls(home, 0.25)
    server.terminate()
    server.join(30)
    return Outcome(connected, still, finished, failed, samples, stalls, before, left)


def main() -> int:
    """Run and report."""
    cli = parser(__doc__)
    cli.add_argument("--minutes", type=float, default=20.0)
    cli.add_argument("--idle", type=int, default=1000, help="nodes that only are connected")
    cli.add_argument("--active", type=int, default=100, help="nodes that take part in runs")
    cli.add_argument("--runs", type=int, default=500)
    options = cli.parse_args()
    if options.quick:
        options.minutes, options.idle, options.active, options.runs = 0.4, 40, 6, 8
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    with tempfile.TemporaryDirectory(prefix="farshore-soak-") as room:
        found = soak(options, Path(room))
    return _report(options, found)


def _report(options: argparse.Namespace, found: Outcome) -> int:
    samples, warm = found.samples, found.samples.after(0.25)
    memory, descriptors = samples.memory[warm], samples.descriptors[warm]
    quarter = max(1, len(memory) // 4)
    at_first, at_last = median(memory[:quarter]), median(memory[-quarter:])
    drift = median(descriptors[-quarter:]) - median(descriptors[:quarter])
    calls, stalls = sorted(samples.calls), sorted(found.stalls)
    p99, rare = calls[int(0.99 * (len(calls) - 1))], stalls[int(0.999 * (len(stalls) - 1))]
    wanted, left = options.idle + options.active, found.left - found.before
    rows = [
        ["nodes connected: at the start, at the end", f"{found.connected}, {found.still}"],
        ["runs: finished, not finished", f"{found.finished}, {found.failed}"],
        ["server memory (USS), MB: after the warm-up, at the end", f"{at_first / 1e6:.1f}, {at_last / 1e6:.1f}"],
        ["descriptors: before, with nodes, after", f"{found.before}, {median(descriptors):.0f}, {found.left}"],
        ["event loop, CPU ms between ticks: p99.9, longest", f"{1000 * rare:.1f}, {1000 * stalls[-1]:.1f}"],
        ["admin call, ms: median, p99", f"{1000 * median(calls):.1f}, {1000 * p99:.1f}"],
    ]

    def judge(name: str, value: float, goal: str, holds: bool) -> Gate:
        return gate(name, value, goal, None if options.quick else holds)

    return finish(
        "soak",
        options,
        scale=f"{options.idle} idle, {options.active} active nodes, {options.runs} runs, {options.minutes:g} minutes",
        claim=CLAIM,
        figures={"seconds": samples.seconds, "memory": samples.memory, "descriptors": samples.descriptors},
        gates=[
            judge("nodes connected at the end", found.still, f"= {wanted}", found.still == wanted),
            judge("runs that did not finish", found.failed, "= 0", found.failed == 0),
            judge("memory: growth after the warm-up", at_last / at_first - 1, "<= 0.02", at_last <= 1.02 * at_first),
            judge("descriptors: drift with all nodes", drift, "<= 2", drift <= 2),
            judge("descriptors left when the nodes have gone", left, "<= 5", left <= 5),
            judge("longest stall of the event loop, CPU seconds", stalls[-1], "< 0.1", stalls[-1] < 0.1),
            judge("admin call, p99, seconds", p99, "< 0.1", p99 < 0.1),
        ],
        tables=[Table("A server with many nodes", ["measured", "figure"], rows)],
    )


if __name__ == "__main__":
    sys.exit(main())
