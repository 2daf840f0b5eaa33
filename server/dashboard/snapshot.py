"""Snapshots of a server's nodes and runs, refreshed at most once a second for all viewers together."""

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
from ...reports.run_report import DIRECTIONS
from ...runs.states import ENDED, RunState
from ...runs.store import NodeRow, RunRow, RunStore
from .options import DashboardOptions
from .server_client import ServerClient
from .throughput import Throughput

#: Seconds between refreshes; the pause as a multiple of the duration of a refresh, and its maximum in seconds.
_INTERVAL, _PAUSE_FACTOR, _MAX_PAUSE = 1.0, 10, 5.0
#: Maximum number of ended runs whose bytes are cached, and of open runs whose ledgers are followed.
_MAX_CACHED, _MAX_FOLLOWED = 5_000, 50
_OPEN: tuple[RunState, ...] = ("waiting", "starting", "running")


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node as displayed.

    Attributes
    ----------
    name, state, reason : str
    run : str
        Id of the run it works on; empty if idle.
    cores : int
    memory, memory_used : int
        Bytes.
    gflops : float
        Measured speed of matrix multiplication.
    system : str
        Operating system and machine type.
    data : tuple of str
        Names of its data sets.
    cpu : float
        CPU load in percent.
    last_seen : float
        Seconds since 1970; 0 = never.
    rates : Mapping
        Bytes per second by direction.
    """

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
    last_seen: float = 0.0
    rates: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunView:
    """A run as displayed.

    Attributes
    ----------
    row : RunRow
    metrics : Mapping
        Metrics of its progress, or of its result if it has ended.
    bytes : Mapping or None
        Frame bytes by direction; None until they have been computed.
    rates : Mapping
        Bytes per second by direction.
    eta : float or None
        Estimated seconds to the end; None if unknown.
    """

    row: RunRow
    metrics: Mapping[str, Any] = field(default_factory=dict)
    bytes: Mapping[str, int] | None = None
    rates: Mapping[str, float] = field(default_factory=dict)
    eta: float | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a server at one moment.

    Attributes
    ----------
    online : bool
        Whether the server responds; if not, the nodes are those of the run store.
    nodes : tuple of NodeView
        Sorted by name.
    open : Mapping[str, RunView]
        Runs that have not ended, by id, oldest first.
    states : Mapping[str, int]
        Number of runs by state.
    """

    online: bool
    nodes: tuple[NodeView, ...]
    open: Mapping[str, RunView]
    states: Mapping[str, int]


class SnapshotCache:
    """Reads the run store and the running server, and caches the result. Read-only; for one asyncio loop.

    Parameters
    ----------
    options : DashboardOptions

    Raises
    ------
    MissingExtraError, NotFoundError, StorageError
        The run store cannot be read.
    """

    def __init__(self, options: DashboardOptions) -> None:
        self.store = RunStore(options.store_url or options.home / "runs.sqlite", read_only=True)
        self._server = ServerClient(options.home)
        self._lock = asyncio.Lock()
        self._snapshot: Snapshot | None = None
        self._due = 0.0
        self._throughput: dict[str, Throughput] = {}
        self._progress: dict[str, deque[tuple[float, int]]] = {}
        self._bytes: OrderedDict[tuple[str, float], Mapping[str, int]] = OrderedDict()
        self._tasks: dict[tuple[str, float], asyncio.Task[None]] = {}
        self._read_lock = asyncio.Semaphore(1)

    async def close(self) -> None:
        """Close the connection to the server and the store."""
        for task in self._tasks.values():
            task.cancel()
        await self._server.close()
        self.store.close()

    async def snapshot(self) -> Snapshot:
        """Return a snapshot at most about a second old; older if refreshing takes long."""
        async with self._lock:
            if self._snapshot is None or time.monotonic() >= self._due:
                started = time.monotonic()
                self._snapshot = await self._refresh()
                ended = time.monotonic()
                self._due = ended + max(_INTERVAL * 0.9, min(_MAX_PAUSE, _PAUSE_FACTOR * (ended - started)))
            return self._snapshot

    async def views(self, rows: Sequence[RunRow]) -> list[RunView]:
        """Return the views of runs of the store; bytes of ended runs are computed in the background for later calls."""
        snapshot = await self.snapshot()
        return [snapshot.open.get(row.id) or self._ended(row) for row in rows]

    # ---- refresh -------------------------------------------------------------------------------------------------

    async def _refresh(self) -> Snapshot:
        rows, states = await asyncio.to_thread(
            lambda: (self.store.runs(*_OPEN, brief=True), self.store.count_by_state())
        )
        nodes = await self._server.nodes()
        infos = await self._server.runs(row.id for row in rows) if nodes is not None else {}
        now = time.time()
        await asyncio.to_thread(self._follow_ledgers, [_merged(row, infos.get(row.id)) for row in rows], now)
        views = {row.id: self._view(row, infos.get(row.id), now) for row in rows}
        if nodes is None:
            node_views = await asyncio.to_thread(self._stored_nodes)
        else:
            rates: dict[tuple[str, str], float] = {}
            for throughput in self._throughput.values():
                for key, rate in throughput.rates(now).items():
                    rates[key] = rates.get(key, 0.0) + rate
            node_views = tuple(_node(node, rates) for node in nodes)
        return Snapshot(nodes is not None, node_views, views, states)

    def _follow_ledgers(self, rows: Sequence[RunRow], now: float) -> None:
        """Read the new rows of the ledgers of open runs."""
        followed = {row.id: Path(row.directory) for row in rows[:_MAX_FOLLOWED] if row.state != "waiting" or row.epoch}
        self._throughput = {run: self._throughput.get(run) or Throughput(path) for run, path in followed.items()}
        for throughput in self._throughput.values():
            throughput.update(now)

    def _view(self, row: RunRow, info: pb.RunInfo | None, now: float) -> RunView:
        row = _merged(row, info)
        throughput = self._throughput.get(row.id)
        by_node = throughput.rates(now) if throughput else {}
        rates = {
            name: sum(rate for (_, direction), rate in by_node.items() if direction == name) for name in DIRECTIONS
        }
        sums = dict(throughput.bytes) if throughput else dict.fromkeys(DIRECTIONS, 0)
        return RunView(row, _progress_metrics(info), sums, rates, self._eta(row))

    def _eta(self, row: RunRow) -> float | None:
        """Estimated seconds to the end of a run, from its progress over the last refreshes."""
        if row.state != "running" or not row.total:
            self._progress.pop(row.id, None)
            return None
        history = self._progress.setdefault(row.id, deque(maxlen=32))
        if history and row.done < history[-1][1]:
            history.clear()  # restarted from a checkpoint
        if row.done and (not history or row.done > history[-1][1]):
            history.append((time.monotonic(), row.done))
        if len(history) < 2:
            return None
        (first, start), (last, end) = history[0], history[-1]
        return (row.total - row.done) * (last - first) / (end - start)

    def _stored_nodes(self) -> tuple[NodeView, ...]:
        """The nodes of the run store, for when the server is not running."""

        def view(row: NodeRow) -> NodeView:
            state, reason = ("revoked", "") if row.revoked else ("lost", "the server is not running")
            return NodeView(row.name, state, reason, last_seen=row.last_seen)

        return tuple(map(view, self.store.nodes()))

    # ---- bytes of ended runs -------------------------------------------------------------------------------------

    def _ended(self, row: RunRow) -> RunView:
        result = _object(row.result_json)
        return RunView(
            row, {name: value for name, value in result.items() if _is_number(value)}, self._ended_bytes(row)
        )

    def _ended_bytes(self, row: RunRow) -> Mapping[str, int] | None:
        key = row.id, row.ended
        if (cached := self._bytes.get(key)) is not None:
            self._bytes.move_to_end(key)
            return cached
        if key not in self._tasks and row.state in ENDED:
            self._tasks[key] = asyncio.create_task(self._sum_bytes(key, Path(row.directory)), name=f"bytes of {row.id}")
        return None

    async def _sum_bytes(self, key: tuple[str, float], directory: Path) -> None:
        def total() -> Mapping[str, int]:
            throughput = Throughput(directory)
            while throughput.update(0.0):
                pass
            return throughput.bytes

        try:
            async with self._read_lock:
                self._bytes[key] = await asyncio.to_thread(total)
            while len(self._bytes) > _MAX_CACHED:
                self._bytes.popitem(last=False)
        finally:
            del self._tasks[key]


def _merged(row: RunRow, info: pb.RunInfo | None) -> RunRow:
    """The store's row, updated with the newer information of the server."""
    if info is None:
        return row
    state: Any = info.state
    return replace(
        row,
        state=state,
        reason=info.reason,
        nodes=tuple(info.nodes),
        epoch=info.epoch,
        started=info.started,
        ended=info.ended,
        done=int(info.done),
        total=int(info.total),
    )


def _progress_metrics(info: pb.RunInfo | None) -> dict[str, Any]:
    return _object(info.progress_json) if info is not None else {}


def _object(text: str) -> dict[str, Any]:
    value = json.loads(text) if text else {}
    return value if isinstance(value, dict) else {}


def _is_number(value: Any) -> bool:
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
        system=" ".join(text[:40] for text in (profile.os, profile.machine) if text),
        data=tuple(node.data),
        cpu=node.cpu_percent,
        memory_used=node.memory_used_bytes,
        last_seen=node.last_seen,
        rates={name: rates.get((node.name, name), 0.0) for name in DIRECTIONS},
    )
