"""The :class:`~farshore.core.session.ServerSession` of a run process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import DataError, RunCancelledError
from ..core.message import Array, Message
from ..core.processes import Parent
from ..core.session import Channel as ChannelProtocol
from ..core.session import Code, RunInfo
from ..core.transfer import Transfer
from ..runs.checkpoints import CheckpointStore
from ..runs.traffic import Traffic
from ..wire.channel import Channel, receive_any
from .code_approval import not_approved
from .rejoin import Rejoin

#: Minimum interval between two progress messages, in seconds.
_PROGRESS_SECONDS = 0.1


class RunProcessSession:
    """Implements :class:`farshore.core.session.ServerSession`.

    Parameters
    ----------
    run : RunInfo
    channels : Mapping[str, Channel]
        One channel per node, in cohort order.
    checkpoints : CheckpointStore
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
        channels: Mapping[str, Channel],
        checkpoints: CheckpointStore,
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
        self._channels = channels
        self._checkpoints = checkpoints
        self._record_metrics = record_metrics
        self._traffic = traffic
        self._data = data
        self._parent = parent
        self._admitted = admitted
        self._rejoin: Rejoin | None = None
        self._cancel_reason = ""
        self._last_progress = 0.0
        self._lock = threading.Lock()

    @property
    def channels(self) -> Mapping[str, ChannelProtocol]:
        """One channel per node, in cohort order."""
        return self._channels

    def receive_any(self, nodes: Sequence[str] | None = None, timeout: float | None = None) -> tuple[str, Message]:
        """Return the next message from any of ``nodes`` (default: all) with the name of its sender."""
        selected = self._channels if nodes is None else {name: self._channels[name] for name in nodes}
        return receive_any(selected, timeout)

    def dismiss(self, node: str, reason: str) -> None:
        """Close the channel to ``node``; its program receives ``reason`` with the error."""
        self._channels[node].close(0.0, reason)

    def enable_rejoin(self, rejoin: Rejoin) -> None:
        """Let restarted node programs rejoin the run through ``rejoin``."""
        self._rejoin = rejoin

    def readmit(self, least: int = 0) -> list[str]:
        """Switch to the channels of nodes that have rejoined; block while fewer than ``least`` nodes are connected."""
        return [] if self._rejoin is None else self._rejoin.readmit(least)

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
        self._checkpoints.save(step, tensors, meta)
        self.newest_step = step

    def load_checkpoint(self, step: int) -> tuple[dict[str, Array], dict[str, Any]]:
        """Read what :meth:`save_checkpoint` wrote."""
        return self._checkpoints.load(step)

    def check_cancelled(self) -> None:
        """Raise :class:`RunCancelledError` if the run has been cancelled."""
        if self._cancel_reason:
            raise RunCancelledError(f"run {self.run.id}: {self._cancel_reason}")

    def log(self, message: str) -> None:
        """Write a line to the run's log."""
        self._parent.send({"type": "log", "line": message})

    def cancel(self, reason: str) -> None:
        """Cancel the server program: pending and later calls raise :class:`RunCancelledError`. Thread-safe."""
        self._cancel_reason = reason or "cancelled"
        error = RunCancelledError(f"run {self.run.id}: {self._cancel_reason}")
        if self._rejoin is not None:
            self._rejoin.fail(error)
        for channel in self._channels.values():
            channel.fail(error)
