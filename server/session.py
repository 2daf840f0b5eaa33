"""The :class:`~farshore.core.session.ServerSession` of a run process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

from ..core.errors import DataError, RunCancelledError
from ..core.message import Array, Message
from ..core.nodes import NodeChange, NodeInfo
from ..core.processes import Parent
from ..core.session import Channel, Code, RecordStream, RunInfo
from ..core.transfer import Transfer
from ..runs.state_store import StateStore
from ..runs.traffic import Traffic
from ..wire.cohort import Cohort
from .code_approval import not_approved

#: Minimum interval between two progress messages, in seconds.
_PROGRESS_SECONDS = 0.1


class RunProcessSession:
    """Implements :class:`farshore.core.session.ServerSession`.

    Parameters
    ----------
    run : RunInfo
    cohort : Cohort
        The channels and nodes.
    state : StateStore
        Checkpoints and streams.
    record_metrics : callable
        ``record_metrics(step, values)``.
    traffic : Traffic
        Counts the run's bytes.
    data : Mapping[str, Path]
        The server's data sets, by name.
    parent : Parent
        The supervisor; receives progress and log lines.
    admitted : str
        SHA-256 of the code that this run may execute on the server; empty = none.
    """

    def __init__(
        self,
        run: RunInfo,
        cohort: Cohort,
        state: StateStore,
        record_metrics: Callable[[int, Mapping[str, float]], None],
        traffic: Traffic,
        data: Mapping[str, Path],
        parent: Parent,
        admitted: str,
    ) -> None:
        self.run = run
        self.resume_step: int | None = None
        #: Step of the newest checkpoint: the one resumed from, then the last one saved.
        self.newest_step: int | None = None
        self._cohort = cohort
        self._state = state
        self._record_metrics = record_metrics
        self._traffic = traffic
        self._data = data
        self._parent = parent
        self._admitted = admitted
        self._cancel_reason = ""
        self._last_progress = 0.0
        self._lock = threading.Lock()

    def begin_from(self, step: int | None) -> None:
        """Resume from the checkpoint of ``step``, or start from the beginning for None."""
        self.resume_step = self.newest_step = step
        self._state.begin(step)

    @property
    def channels(self) -> Mapping[str, Channel]:
        """One channel per node, in cohort order."""
        return self._cohort.channels

    @property
    def nodes(self) -> Mapping[str, NodeInfo]:
        """Role, shard, labels and profile of each node."""
        return self._cohort.nodes

    @overload
    def receive_any(self, nodes: Sequence[str] | None = None, timeout: float | None = None) -> tuple[str, Message]: ...

    @overload
    def receive_any(
        self, nodes: Sequence[str] | None = None, timeout: float | None = None, *, changes: Literal[True]
    ) -> tuple[str, Message | NodeChange]: ...

    def receive_any(
        self, nodes: Sequence[str] | None = None, timeout: float | None = None, *, changes: bool = False
    ) -> tuple[str, Message | NodeChange]:
        """Return the next message from ``nodes`` (default: all), or change of the cohort, with the node's name."""
        return self._cohort.receive(nodes, timeout, changes=changes)

    def dismiss(self, node: str, reason: str) -> None:
        """Close the channel to ``node``; its program receives ``reason`` with the error."""
        self._cohort.dismiss(node, reason)

    def readmit(self, least: int = 0) -> list[str]:
        """Switch to the channels of nodes that are ready; block while fewer than ``least`` nodes are connected."""
        return self._cohort.readmit(least)

    def data(self, name: str) -> Path:
        """Return the server's path of the data set ``name``.

        Raises
        ------
        DataError
            The server has no such data set, or its path does not exist.
        """
        try:
            path = self._data[name]
        except KeyError:
            known = ", ".join(sorted(self._data)) or "none"
            raise DataError(
                f"the server has no data set '{name}' (it has: {known})",
                hint=f"start it with --data {name}=PATH, or give the run --server-data {name}=PATH",
            ) from None
        if not path.exists():
            raise DataError(f"the server's data set '{name}' does not exist at {path}", hint="correct its path")
        return path

    def admit(self, code: Code) -> None:
        """Raise :class:`RefusedError` unless the server's operator has approved ``code``."""
        if code.digest != self._admitted:
            raise not_approved(code)

    def metrics(self, step: int, **values: float) -> None:
        """Record named metrics at ``step``."""
        self._record_metrics(step, {name: float(value) for name, value in values.items()})

    def account(self, node: str, kind: str, step: int, size: int) -> None:
        """Record ``size`` bytes that ``node`` reports to have sent to other nodes."""
        sizes = {"dense_bytes": size, "payload_bytes": size, "frame_bytes": size}
        place = {"round": 0, "step": step, "micro": 0, "attempt": self.run.epoch}
        self._traffic.record(Transfer(node, "peer", kind, "raw", **place, **sizes, time=time.time()))

    def traffic(self) -> Mapping[str, int]:
        """Return the bytes of the run's own messages in this restart epoch so far."""
        return self._traffic.bytes()

    def progress(self, done: int, total: int, **values: float | str) -> None:
        """Report progress to the supervisor, at most every 0.1 s except for the last report."""
        now = time.monotonic()
        with self._lock:
            if now - self._last_progress < _PROGRESS_SECONDS and done < total:
                return
            self._last_progress = now
        metrics = {n: v if isinstance(v, str) else float(v) for n, v in values.items()}
        report = {**metrics, **self._traffic.progress(), "kinds": self._traffic.kinds()}
        self._parent.send({"type": "progress", "done": done, "total": total, "values": report})

    def save_checkpoint(self, step: int, tensors: Mapping[str, Array], meta: Mapping[str, Any]) -> None:
        """Write the server's state after ``step``; the two newest checkpoints are kept."""
        self._state.save(step, tensors, meta)
        self.newest_step = step

    def load_checkpoint(self, step: int) -> tuple[dict[str, Array], dict[str, Any]]:
        """Read what :meth:`save_checkpoint` wrote."""
        return self._state.load(step)

    def append(self, stream: str, tensors: Mapping[str, Array]) -> int:
        """Append a record to a stream; returns its index."""
        return self._state.append(stream, tensors)

    def stream(self, name: str) -> RecordStream:
        """Return a stream, for reading."""
        return self._state.stream(name)

    def check_cancelled(self) -> None:
        """Raise :class:`RunCancelledError` if the run has been cancelled."""
        if self._cancel_reason:
            raise RunCancelledError(f"run {self.run.id}: {self._cancel_reason}")

    def log(self, message: str) -> None:
        """Write a line to the run's log."""
        self._parent.send({"type": "log", "line": message})

    def cancel(self, reason: str) -> RunCancelledError:
        """Mark the run as cancelled; returns the error that the server program is to get. Thread-safe."""
        self._cancel_reason = reason or "cancelled"
        return RunCancelledError(f"run {self.run.id}: {self._cancel_reason}")
