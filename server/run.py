"""The orchestrator's state of a run, and the events that its supervisor handles."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..core.bounds import MAX_TRACEBACK, cut_start
from ..core.errors import StorageError
from ..core.handshake import ResumeFrom
from ..core.nodes import Role, RoleRequest
from ..core.session import Code
from ..proto import control_pb2 as pb
from ..runs.directory import RunDirectory
from ..runs.states import RunState
from .run_log import RunLog
from .run_messages import full

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Event:
    """An event of a run, for its supervisor.

    Attributes
    ----------
    kind : str
        State of the run process: ``ready``, ``waiting``, ``running``, ``finished``, ``failed`` or ``gone``. Reports of
        the run process about a node: ``dialled``, ``expecting`` or ``unfit``. Of a node program: ``exited``. Of a node:
        ``lost``, ``returned``, ``joining`` or ``revoked``. Requests to end the run: ``cancelled`` or ``interrupted``.
    node : str
        The node concerned, or empty.
    epoch : int
        Restart epoch of the program concerned.
    code : int
        Exit code of a node program; negative = killed by that signal.
    text : str
        Error or reason, in one line.
    details : dict
        The message from the run process, or the traceback of a node program.
    """

    kind: str
    node: str = ""
    epoch: int = 0
    code: int = 0
    text: str = ""
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Run:
    """A run and its state.

    Attributes
    ----------
    requests : tuple of RoleRequest
        Requested nodes, for every role.
    roles : tuple of Role
        The workload's roles and their requirements on nodes.
    may_join : bool
        Whether nodes can join the run while it is in progress.
    cohort : dict
        Roles by node, in order, once the cohort has been chosen. Nodes that join are appended.
    data : dict
        Paths of data sets on the server, by name.
    code : Code or None
        The code submitted with the run.
    admitted : bool
        Whether the server's operator has approved that code for this run.
    no_restart : bool
        Whether the run cannot be restarted: its only node opened it and keeps its state in memory.
    resume_from : ResumeFrom or None
        The operator's choice of where to continue, from a resume until the programs run again.
    end_request : (str, str) or None
        Request to end the run early: the final state and the reason.
    wait_seconds : float
        How long the run may wait for nodes before it fails; 0 = without limit.
    inbox : asyncio.Queue
        Events for its supervisor.
    epoch : int
        The restart epoch: how many times all programs, or one node's program, have been restarted.
    programs : dict
        The restart epoch of the program that each node is running, by node.
    """

    id: str
    workload: str
    config_json: str
    seed: int
    directory: Path
    log: RunLog
    requests: tuple[RoleRequest, ...] = ()
    roles: tuple[Role, ...] = ()
    may_join: bool = False
    cohort: dict[str, str] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)
    code: Code | None = None
    admitted: bool = False
    no_restart: bool = False
    state: RunState = "waiting"
    reason: str = ""
    created: float = field(default_factory=time.time)
    started: float = 0.0
    ended: float = 0.0
    wait_seconds: float = 0.0
    epoch: int = 0
    result_json: str = ""
    done: int = 0
    total: int = 0
    progress: dict[str, Any] = field(default_factory=dict)
    resume_from: ResumeFrom | None = None
    end_request: tuple[Literal["cancelled", "interrupted"], str] | None = None
    inbox: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)
    programs: dict[str, int] = field(default_factory=dict)
    assigned: asyncio.Event = field(default_factory=asyncio.Event)
    restarts: deque[float] = field(default_factory=deque)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of the cohort, in order."""
        return tuple(self.cohort)

    @property
    def requested_nodes(self) -> tuple[str, ...]:
        """Nodes requested by name."""
        return tuple(name for request in self.requests for name in request.nodes)

    def may_grow_to(self, role: str) -> int:
        """How many nodes may play a role while the run is in progress."""
        return next((request.count.most for request in self.requests if request.role == role), 0)

    def end_early(self, verdict: Literal["cancelled", "interrupted"], reason: str) -> None:
        """Request the supervisor to end the run in the state ``verdict``; the first request counts."""
        self.end_request = self.end_request or (verdict, reason)
        self.inbox.put_nowait(Event(verdict))

    def record_failure(self, origin: str, error: str, traceback: str) -> None:
        """Record the failure of a program of ``origin`` (``run`` or a node's name) in the log and the run directory."""
        traceback = cut_start(traceback, MAX_TRACEBACK)
        self.log.write(origin, traceback.splitlines())
        try:
            RunDirectory(self.directory).add_failure(origin, self.epoch, error, traceback)
        except StorageError as failed:
            _log.warning("run %s: %s", self.id, failed)

    def notify(self) -> None:
        """Wake the followers of this run."""
        self.changed.set()
        self.changed = asyncio.Event()

    def info(self) -> pb.RunInfo:
        """Return the run as a message for submitters."""
        return full(self)
