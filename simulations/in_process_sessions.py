"""The sessions of an in-process run; see :class:`farshore.simulations.in_process.InProcessRun`."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from ..core.errors import DataError, RunCancelledError
from ..core.node_metrics import metrics_message
from ..core.nodes import NodeInfo
from ..core.session import Channel, Code, RunInfo
from ..runs.session_state import SessionState
from ..runs.state_store import StateStore
from ..runs.traffic import Traffic
from ..wire.cohort import Cohort
from ..wire.cohort_session import CohortSession

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

    def admit(self, code: Code) -> None:
        """Accept any code: it runs on the machine of the user who started the run."""

    def check_cancelled(self) -> None:
        if self.cancelled.is_set():
            raise RunCancelledError(f"run {self.run.id} was cancelled")

    def log(self, message: str) -> None:
        logger.info("%s: %s", self.owner, message)

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
    #: Empty: threads of one process cannot be ranks of a process group.
    peer_interface: str = ""

    @property
    def node(self) -> str:
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

    def metrics(self, step: int, **values: float) -> None:
        if self.on_metrics:
            self.on_metrics(step, values)

    def account(self, node: str, kind: str, step: int, size: int) -> None:
        """Do nothing: node threads do not exchange messages with each other."""

    def traffic(self) -> Mapping[str, int]:
        return self.traffic_counter.bytes() if self.traffic_counter else {}

    def progress(self, done: int, total: int, **values: float | str) -> None:
        if self.on_progress:
            self.on_progress(done, total, values)
