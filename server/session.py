"""The server program's view of its run, in the run process."""

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
from .code_approval import refusal
from .rejoin import Rejoin

#: Progress is told at most so often, in seconds.
_PROGRESS_SECONDS = 0.1


class RunProcessSession:
    """Implements :class:`farshore.core.session.ServerSession`.

    Parameters
    ----------
    run : RunInfo
    channels : Mapping[str, Channel]
        One per node, in cohort order.
    checkpoints : CheckpointStore
    record_metrics : callable
        ``record_metrics(step, values)``.
    traffic : Traffic
        Counts the run's bytes.
    data : Mapping[str, Path]
        The server's data sets.
    parent : Parent
        Where progress and log lines go.
    admitted : str
        SHA-256 of the code that the run may have executed here; empty = none.
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
        #: Of the newest checkpoint that this program saved or begins from.
        self.newest_step: int | None = None
        self._channels = channels
        self._checkpoints = checkpoints
        self._record_metrics = record_metrics
        self._traffic = traffic
        self._data = data
        self._parent = parent
        self._admitted = admitted
        self._returning: Rejoin | None = None
        self._cancelled = ""
        self._told = 0.0
        self._lock = threading.Lock()

    @property
    def channels(self) -> Mapping[str, ChannelProtocol]:
        """One conversation per node of the cohort, in cohort order."""
        return self._channels

    def receive_any(self, nodes: Sequence[str] | None = None, timeout: float | None = None) -> tuple[str, Message]:
        """The next message of whichever node sends first."""
        chosen = self._channels if nodes is None else {name: self._channels[name] for name in nodes}
        return receive_any(chosen, timeout)

    def dismiss(self, node: str, reason: str) -> None:
        """End the conversation with a node; its program is told why."""
        self._channels[node].close(0.0, reason)

    def use(self, returning: Rejoin) -> None:
        """Let nodes come back."""
        self._returning = returning

    def readmit(self, least: int = 0) -> list[str]:
        """Take up the conversations with nodes that came back; waits while fewer than ``least`` are there."""
        return [] if self._returning is None else self._returning.readmit(least)

    def data(self, name: str) -> Path:
        """The server's own path of a data set."""
        try:
            path = self._data[name]
        except KeyError:
            known = ", ".join(sorted(self._data)) or "none"
            raise DataError(
                f"the server has no data set '{name}' (it has: {known})",
                hint=f"start it with --data {name}=PATH, or give the run --server-data {name}=PATH",
            ) from None
        if not path.exists():
            raise DataError(f"the server's data set '{name}' is not at {path}", hint="correct its path")
        return path

    def admit(self, code: Code) -> None:
        """Make sure that the server's operator has accepted code that came with the run."""
        if code.digest != self._admitted:
            raise refusal(code)

    def metrics(self, step: int, **values: float) -> None:
        """Record named figures at ``step``."""
        self._record_metrics(step, {name: float(value) for name, value in values.items()})

    def account(self, node: str, kind: str, step: int, size: int) -> None:
        """Write down bytes that a node says it sent to other nodes."""
        sizes = {"dense_bytes": size, "payload_bytes": size, "frame_bytes": size}
        place = {"round": 0, "step": step, "micro": 0, "attempt": self.run.epoch}
        self._traffic.record(Transfer(node, "peer", kind, "raw", **place, **sizes, time=time.time()))

    def traffic(self) -> Mapping[str, int]:
        """Bytes of the run's own messages in this epoch so far."""
        return self._traffic.bytes()

    def progress(self, done: int, total: int, **values: float | str) -> None:
        """Tell how far the run is."""
        now = time.monotonic()
        with self._lock:
            if now - self._told < _PROGRESS_SECONDS and done < total:
                return
            self._told = now
        figures = {n: v if isinstance(v, str) else float(v) for n, v in values.items()}
        told = {**figures, **self._traffic.progress(), "kinds": self._traffic.kinds()}
        self._parent.send({"type": "progress", "done": done, "total": total, "values": told})

    def save_checkpoint(self, step: int, tensors: Mapping[str, Array], meta: Mapping[str, Any]) -> None:
        """Write this side's state after ``step``; the two newest are kept."""
        self._checkpoints.save(step, tensors, meta)
        self.newest_step = step

    def load_checkpoint(self, step: int) -> tuple[dict[str, Array], dict[str, Any]]:
        """Read what :meth:`save_checkpoint` wrote."""
        return self._checkpoints.load(step)

    def check_cancelled(self) -> None:
        """Raise :class:`RunCancelledError` when the run has to end."""
        if self._cancelled:
            raise RunCancelledError(f"run {self.run.id}: {self._cancelled}")

    def log(self, message: str) -> None:
        """Write a line to the run's log."""
        self._parent.send({"type": "log", "line": message})

    def cancel(self, reason: str) -> None:
        """Have the server program end: whatever it waits for raises; from any thread."""
        self._cancelled = reason or "cancelled"
        error = RunCancelledError(f"run {self.run.id}: {self._cancelled}")
        if self._returning is not None:
            self._returning.fail(error)
        for channel in self._channels.values():
            channel.fail(error)
