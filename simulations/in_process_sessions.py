"""The sessions of an in-process run; see :class:`farshore.simulations.in_process.InProcessRun`."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias, overload

from ..core.errors import DataError, RunCancelledError
from ..core.message import Message
from ..core.node_metrics import metrics_message
from ..core.nodes import NodeChange, NodeInfo
from ..core.session import Channel, Code, RunInfo
from ..runs.session_state import SessionState
from ..runs.state_store import StateStore
from ..runs.traffic import Traffic
from ..wire.cohort import Cohort
from ..wire.cohort_session import CohortSession
from .virtual_network import SERVER, VirtualNetwork

logger = logging.getLogger(__name__)

OnProgress: TypeAlias = Callable[[int, int, Mapping[str, float | str]], None]
OnMetrics: TypeAlias = Callable[[int, dict[str, float]], None]


@dataclass
class InProcessSession(SessionState):
    """State and services common to the server's and the nodes' sessions."""

    run: RunInfo
    state: StateStore
    paths: Mapping[str, Path]
    cancelled: threading.Event
    owner: str
    resume_step: int | None = field(default=None, kw_only=True)
    newest_step: int | None = field(default=None, kw_only=True)
    network: VirtualNetwork | None = field(default=None, kw_only=True)
    on_log: Callable[[str], None] | None = field(default=None, kw_only=True)

    def admit(self, code: Code) -> None:
        """Accept any code: it runs on the machine of the user who started the run."""

    def clock(self) -> float:
        """The time in seconds, for :func:`~farshore.core.clock.clock_of`."""
        return time.perf_counter() if self.network is None else self.network.clock_of(self.program)

    @property
    def program(self) -> str:
        """Name of this program: ``server``, or the node's."""
        return SERVER

    def check_cancelled(self) -> None:
        if self.cancelled.is_set():
            raise RunCancelledError(f"run {self.run.id} was cancelled")

    def log(self, message: str) -> None:
        logger.info("%s: %s", self.owner, message)
        if self.on_log:
            self.on_log(f"{self.owner}: {message}")

    def data(self, name: str) -> Path:
        try:
            return self.paths[name]
        except KeyError:
            raise DataError(
                f"{self.owner} has no data set called '{name}'", hint=f"pass its path: --data {name}=PATH"
            ) from None


@dataclass
class InProcessNodeSession(InProcessSession):
    """Implements :class:`farshore.core.session.NodeSession`."""

    info: NodeInfo
    channel: Channel
    cache: Path
    #: Empty: ranks of one process exchange tensors through the server only.
    peer_interface: str = ""

    @property
    def node(self) -> str:
        return self.info.name

    @property
    def program(self) -> str:
        return self.info.name

    @property
    def role(self) -> str:
        return self.info.role

    @property
    def shard(self) -> tuple[int, int]:
        return self.info.shard

    def metrics(self, step: int, **values: float) -> None:
        self.channel.send(metrics_message(step, values))


@dataclass
class InProcessServerSession(InProcessSession, CohortSession):
    """Implements :class:`farshore.core.session.ServerSession`."""

    cohort: Cohort
    on_progress: OnProgress | None
    on_metrics: OnMetrics | None
    traffic_counter: Traffic | None

    @overload
    def receive_any(self, nodes: Sequence[str] | None = None, timeout: float | None = None) -> tuple[str, Message]: ...

    @overload
    def receive_any(
        self, nodes: Sequence[str] | None = None, timeout: float | None = None, *, changes: Literal[True]
    ) -> tuple[str, Message | NodeChange]: ...

    def receive_any(
        self, nodes: Sequence[str] | None = None, timeout: float | None = None, *, changes: bool = False
    ) -> tuple[str, Message | NodeChange]:
        if self.network is None:
            return self.cohort.receive(nodes, timeout, changes=changes)
        names = self.cohort.channels if nodes is None else nodes
        watched = {name: channel for name in names if not (channel := self.cohort.channels[name]).inbox.error}
        if watched or not changes:
            return self.network.receive_any(watched or {n: self.cohort.channels[n] for n in names}, timeout)
        return self.cohort.receive(nodes, 0.0, changes=True)

    def metrics(self, step: int, **values: float) -> None:
        if self.on_metrics:
            now = {} if self.network is None else {"simulated_seconds": self.network.now}
            self.on_metrics(step, {**values, **now})

    def account(self, node: str, kind: str, step: int, size: int) -> None:
        """Do nothing: node threads do not exchange messages with each other."""

    def traffic(self) -> Mapping[str, int]:
        return self.traffic_counter.bytes() if self.traffic_counter else {}

    def progress(self, done: int, total: int, **values: float | str) -> None:
        if self.on_progress:
            self.on_progress(done, total, values)
