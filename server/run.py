"""One run as the orchestrator sees it."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..core.errors import StorageError
from ..core.session import Code
from ..proto import control_pb2 as pb
from ..runs.directory import RunDirectory
from ..runs.states import RunState
from .run_log import RunLog

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a run's programs, for its supervisor.

    ``kind`` is ``ready``, ``waiting``, ``running``, ``finished``, ``failed`` or ``gone`` (of the run process),
    ``expecting`` or ``unfit`` (a node, says the run process), ``exited`` (of a node program), ``lost`` or ``returned``
    (of a node), ``cancelled`` or ``interrupted``.
    """

    kind: str
    node: str = ""
    epoch: int = 0
    code: int = 0
    text: str = ""
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Run:
    """A run and how it goes.

    Attributes
    ----------
    wanted : tuple of str
        Nodes asked for by name; empty = any ``count`` of them.
    nodes : tuple of str
        The cohort, once it is chosen; it stays the same for ever.
    needs : tuple of tuple of str
        Data sets that each node must hold; for each, the names under which it will do.
    data : dict
        Data sets on the server's side.
    code : Code or None
        What it brings to be executed.
    admitted : bool
        Whether the server's operator has accepted that code for this very run.
    one_epoch : bool
        Its only node opened it for itself and keeps its half in memory: there is nothing to restart from.
    ending : (str, str) or None
        Somebody wants it to end: the state to end in, and why.
    inbox : asyncio.Queue
        What its supervisor has to look at.
    epoch : int
        Of the newest program of it: counts the times that all programs, or a node's alone, were started again.
    programs : dict
        The epoch of the program that each node is believed to run.
    """

    id: str
    workload: str
    config_json: str
    seed: int
    directory: Path
    log: RunLog
    count: int = 1
    wanted: tuple[str, ...] = ()
    needs: tuple[tuple[str, ...], ...] = ()
    data: dict[str, str] = field(default_factory=dict)
    code: Code | None = None
    admitted: bool = False
    one_epoch: bool = False
    state: RunState = "waiting"
    reason: str = ""
    created: float = field(default_factory=time.time)
    started: float = 0.0
    ended: float = 0.0
    nodes: tuple[str, ...] = ()
    epoch: int = 0
    result_json: str = ""
    done: int = 0
    total: int = 0
    progress: dict[str, Any] = field(default_factory=dict)
    ending: tuple[Literal["cancelled", "interrupted"], str] | None = None
    inbox: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)
    programs: dict[str, int] = field(default_factory=dict)
    assigned: asyncio.Event = field(default_factory=asyncio.Event)
    restarts: deque[float] = field(default_factory=deque)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def end_early(self, verdict: Literal["cancelled", "interrupted"], reason: str) -> None:
        """Ask the run's supervisor to end it."""
        self.ending = self.ending or (verdict, reason)
        self.inbox.put_nowait(Event(verdict))

    def blame(self, origin: str, error: str, traceback: str) -> None:
        """Write down what failed in a program of ``origin`` (``run`` or a node's name): for the log, and by itself."""
        self.log.write(origin, traceback.splitlines())
        try:
            RunDirectory(self.directory).add_failure(origin, self.epoch, error, traceback)
        except StorageError as failed:
            _log.warning("run %s: %s", self.id, failed)

    def notify(self) -> None:
        """Wake whoever follows this run."""
        self.changed.set()
        self.changed = asyncio.Event()

    def info(self) -> pb.RunInfo:
        """What submitters see of it."""
        return pb.RunInfo(
            id=self.id,
            workload=self.workload,
            state=self.state,
            reason=self.reason,
            created=self.created,
            started=self.started,
            ended=self.ended,
            nodes=self.nodes,
            epoch=self.epoch,
            config_json=self.config_json,
            result_json=self.result_json,
            directory=str(self.directory),
            done=self.done,
            total=self.total,
            progress_json=json.dumps(self.progress),
        )
