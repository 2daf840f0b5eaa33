"""What a dashboard knows of a server: looked up at most once a second, however many look at it."""

from __future__ import annotations

import asyncio
import json
import time
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...proto import control_pb2 as pb
from ...reports.run_report import WAYS
from ...runs.states import ENDED, RunState
from ...runs.store import RunRow, RunStore
from .options import DashboardOptions
from .server_client import ServerClient
from .throughput import Throughput

#: Seconds between two looks; the pause is ten times as long as the look took, but no more than so many seconds.
_SECONDS, _PAUSE, _LONGEST = 1.0, 10, 5.0
#: Runs whose bytes are kept in mind, and open ones whose ledgers are followed.
_KNOWN, _FOLLOWED = 5_000, 50
_OPEN: tuple[RunState, ...] = ("waiting", "starting", "running")


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node as it is shown; rates in bytes per second by direction, ``seen`` in seconds since 1970 (0 = never)."""

    name: str
    state: str
    reason: str = ""
    run: str = ""
    cores: int = 0
    memory: int = 0
    gflops: float = 0.0
    system: str = ""
    data: tuple[str, ...] = ()
    cpu: float = 0.0
    memory_used: int = 0
    seen: float = 0.0
    rates: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunView:
    """A run as it is shown; ``bytes`` are frame bytes by direction, None while not known; ``eta`` in seconds."""

    row: RunRow
    figures: Mapping[str, Any] = field(default_factory=dict)
    bytes: Mapping[str, int] | None = None
    rates: Mapping[str, float] = field(default_factory=dict)
    eta: float | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A server at one moment.

    Attributes
    ----------
    online : bool
        Whether the server answers; otherwise this is what the store remembers.
    nodes : tuple of NodeView
        By name.
    open : Mapping[str, RunView]
        Runs that have not ended, by id, oldest first.
    states : Mapping[str, int]
        How many runs are in each state.
    """

    online: bool
    nodes: tuple[NodeView, ...]
    open: Mapping[str, RunView]
    states: Mapping[str, int]


class SnapshotCache:
    """Looks at a store and at the server that writes it; inside one asyncio loop. Changes neither.

    Parameters
    ----------
    options : DashboardOptions

    Raises
    ------
    MissingExtraError, NotFoundError, StorageError
        The store cannot be read.
    """

    def __init__(self, options: DashboardOptions) -> None:
        self.store = RunStore(options.store_url or options.home / "runs.sqlite", only_read=True)
        self._link = ServerClient(options.home)
        self._looking = asyncio.Lock()
        self._snapshot: Snapshot | None = None
        self._due = 0.0
        self._pulses: dict[str, Throughput] = {}
        self._done: dict[str, deque[tuple[float, int]]] = {}
        self._bytes: OrderedDict[tuple[str, float], Mapping[str, int]] = OrderedDict()
        self._summing: dict[tuple[str, float], asyncio.Task[None]] = {}
        self._reading = asyncio.Semaphore(1)

    async def close(self) -> None:
        """Hang up and close the store."""
        for task in self._summing.values():
            task.cancel()
        await self._link.close()
        self.store.close()

    async def snapshot(self) -> Snapshot:
        """The newest, at most a second old; older only where looking takes long."""
        async with self._looking:
            if self._snapshot is None or time.monotonic() >= self._due:
                began = time.monotonic()
                self._snapshot = await self._look()
                ended = time.monotonic()
                self._due = ended + max(_SECONDS * 0.9, min(_LONGEST, _PAUSE * (ended - began)))
            return self._snapshot

    async def views(self, rows: Sequence[RunRow]) -> list[RunView]:
        """Some runs of the store as they are shown; the bytes of ended ones may come with a later call."""
        snapshot = await self.snapshot()
        return [snapshot.open.get(row.id) or self._ended(row) for row in rows]

    # ---- one look ------------------------------------------------------------------------------------------------

    async def _look(self) -> Snapshot:
        rows, states = await asyncio.to_thread(lambda: (self.store.runs(*_OPEN), self.store.states()))
        nodes = await self._link.nodes()
        told = await self._link.runs(row.id for row in rows) if nodes is not None else {}
        now = time.time()
        await asyncio.to_thread(self._feel, [_newest(row, told.get(row.id)) for row in rows], now)
        views = {row.id: self._view(row, told.get(row.id), now) for row in rows}
        if nodes is None:
            listed = await asyncio.to_thread(self._remembered)
        else:
            rates: dict[tuple[str, str], float] = {}
            for pulse in self._pulses.values():
                for key, rate in pulse.rates(now).items():
                    rates[key] = rates.get(key, 0.0) + rate
            listed = tuple(_node(node, rates) for node in nodes)
        return Snapshot(nodes is not None, listed, views, states)

    def _feel(self, rows: Sequence[RunRow], now: float) -> None:
        """Follow the ledgers of open runs."""
        followed = {row.id: Path(row.directory) for row in rows[:_FOLLOWED] if row.state != "waiting" or row.epoch}
        self._pulses = {run: self._pulses.get(run) or Throughput(path) for run, path in followed.items()}
        for pulse in self._pulses.values():
            pulse.look(now)

    def _view(self, row: RunRow, told: pb.RunInfo | None, now: float) -> RunView:
        row = _newest(row, told)
        pulse = self._pulses.get(row.id)
        rates = pulse.rates(now) if pulse else {}
        ways = {way: sum(rate for (_, mine), rate in rates.items() if mine == way) for way in WAYS}
        sums = dict(pulse.bytes) if pulse else dict.fromkeys(WAYS, 0)
        return RunView(row, _figures(told), sums, ways, self._eta(row))

    def _eta(self, row: RunRow) -> float | None:
        """Seconds to go, at the rate of the last looks."""
        if row.state != "running" or not row.total:
            self._done.pop(row.id, None)
            return None
        seen = self._done.setdefault(row.id, deque(maxlen=32))
        if seen and row.done < seen[-1][1]:
            seen.clear()  # started again from a checkpoint
        if row.done and (not seen or row.done > seen[-1][1]):
            seen.append((time.monotonic(), row.done))
        if len(seen) < 2:
            return None
        (first, start), (last, end) = seen[0], seen[-1]
        return (row.total - row.done) * (last - first) / (end - start)

    def _remembered(self) -> tuple[NodeView, ...]:
        offline = "the server is not running"
        return tuple(
            NodeView(row.name, "revoked" if row.revoked else "lost", "" if row.revoked else offline, seen=row.last_seen)
            for row in self.store.nodes()
        )

    # ---- bytes of runs that have ended ---------------------------------------------------------------------------

    def _ended(self, row: RunRow) -> RunView:
        result = _object(row.result_json)
        return RunView(
            row, {name: value for name, value in result.items() if _is_figure(value)}, self._ended_bytes(row)
        )

    def _ended_bytes(self, row: RunRow) -> Mapping[str, int] | None:
        key = row.id, row.ended
        if (known := self._bytes.get(key)) is not None:
            self._bytes.move_to_end(key)
            return known
        if key not in self._summing and row.state in ENDED:
            self._summing[key] = asyncio.create_task(self._sum_up(key, Path(row.directory)), name=f"bytes of {row.id}")
        return None

    async def _sum_up(self, key: tuple[str, float], directory: Path) -> None:
        def whole() -> Mapping[str, int]:
            pulse = Throughput(directory)
            while pulse.look(0.0):
                pass
            return pulse.bytes

        try:
            async with self._reading:
                self._bytes[key] = await asyncio.to_thread(whole)
            while len(self._bytes) > _KNOWN:
                self._bytes.popitem(last=False)
        finally:
            del self._summing[key]


def _newest(row: RunRow, told: pb.RunInfo | None) -> RunRow:
    """The store's row with what the server knows better."""
    if told is None:
        return row
    state: Any = told.state
    return replace(
        row,
        state=state,
        reason=told.reason,
        nodes=tuple(told.nodes),
        epoch=told.epoch,
        started=told.started,
        ended=told.ended,
        done=int(told.done),
        total=int(told.total),
    )


def _figures(told: pb.RunInfo | None) -> dict[str, Any]:
    return _object(told.progress_json) if told is not None else {}


def _object(text: str) -> dict[str, Any]:
    value = json.loads(text) if text else {}
    return value if isinstance(value, dict) else {}


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _node(node: pb.NodeInfo, rates: Mapping[tuple[str, str], float]) -> NodeView:
    profile = node.profile
    return NodeView(
        name=node.name,
        state=node.state,
        reason=node.reason,
        run=node.runs[0] if node.runs else "",
        cores=profile.cores,
        memory=profile.memory_bytes,
        gflops=profile.matmul_gflops,
        system=" ".join(word[:40] for word in (profile.os, profile.machine) if word),
        data=tuple(node.data),
        cpu=node.cpu_percent,
        memory_used=node.memory_used_bytes,
        seen=node.last_seen,
        rates={way: rates.get((node.name, way), 0.0) for way in WAYS},
    )
