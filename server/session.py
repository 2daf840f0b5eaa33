"""The :class:`~farshore.core.session.ServerSession` of a run process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from ..core.errors import DataError, RunCancelledError
from ..core.processes import Parent
from ..core.session import Code, RunInfo
from ..core.transfer import Transfer
from ..runs.session_state import SessionState
from ..runs.state_store import StateStore
from ..runs.traffic import Traffic
from ..wire.cohort import Cohort
from ..wire.cohort_session import CohortSession
from .code_approval import not_approved

#: Minimum interval between two progress messages, in seconds.
_PROGRESS_SECONDS = 0.1


class RunProcessSession(SessionState, CohortSession):
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
        self.cohort = cohort
        self.state = state
        self._record_metrics = record_metrics
        self._traffic = traffic
        self._data = data
        self._parent = parent
        self._admitted = admitted
        self._cancel_reason = ""
        self._last_progress = 0.0
        self._lock = threading.Lock()

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
