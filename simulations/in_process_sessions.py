"""The sessions of an in-process run; see :class:`farshore.simulations.in_process.InProcessRun`."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, overload

from ..core.errors import DataError, RunCancelledError
from ..core.message import Array, Message
from ..core.node_metrics import metrics_message
from ..core.nodes import NodeChange, NodeInfo
from ..core.session import Channel, Code, RecordStream, RunInfo
from ..runs.state_store import StateStore
from ..runs.traffic import Traffic
from ..wire.cohort import Cohort

logger = logging.getLogger(__name__)

OnProgress: TypeAlias = Callable[[int, int, Mapping[str, float | str]], None]
OnMetrics: TypeAlias = Callable[[int, dict[str, float]], None]


@dataclass
class InProcessSession:
    """State and services common to the server's and the nodes' sessions."""

    run: RunInfo
    state: StateStore
    paths: Mapping[str, Path]
    cancelled: threading.Event
    owner: str
    resume_step: int | None = field(default=None, kw_only=True)

    def begin_from(self, step: int | None) -> None:
        """Resume from a step, or start from the beginning for None."""
        self.resume_step = step
        self.state.begin(step)

    def save_checkpoint(self, step: int, tensors: Mapping[str, Array], meta: Mapping[str, Any]) -> None:
        self.state.save(step, tensors, meta)

    def load_checkpoint(self, step: int) -> tuple[dict[str, Array], dict[str, Any]]:
        return self.state.load(step)

    def append(self, stream: str, tensors: Mapping[str, Array]) -> int:
        return self.state.append(stream, tensors)

    def stream(self, name: str) -> RecordStream:
        return self.state.stream(name)

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
    cache: Path
    #: Empty: ranks of one process exchange tensors through the server only.
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
class InProcessServerSession(InProcessSession):
    """Implements :class:`farshore.core.session.ServerSession`."""

    cohort: Cohort
    on_progress: OnProgress | None
    on_metrics: OnMetrics | None
    traffic_counter: Traffic | None
    #: Step of the newest checkpoint that this program saved or begins from.
    newest_step: int | None = None

    def begin_from(self, step: int | None) -> None:
        super().begin_from(step)
        self.newest_step = step

    def save_checkpoint(self, step: int, tensors: Mapping[str, Array], meta: Mapping[str, Any]) -> None:
        super().save_checkpoint(step, tensors, meta)
        self.newest_step = step

    @property
    def channels(self) -> Mapping[str, Channel]:
        return self.cohort.channels

    @property
    def nodes(self) -> Mapping[str, NodeInfo]:
        return self.cohort.nodes

    @overload
    def receive_any(self, nodes: Sequence[str] | None = None, timeout: float | None = None) -> tuple[str, Message]: ...

    @overload
    def receive_any(
        self, nodes: Sequence[str] | None = None, timeout: float | None = None, *, changes: Literal[True]
    ) -> tuple[str, Message | NodeChange]: ...

    def receive_any(
        self, nodes: Sequence[str] | None = None, timeout: float | None = None, *, changes: bool = False
    ) -> tuple[str, Message | NodeChange]:
        return self.cohort.receive(nodes, timeout, changes=changes)

    def dismiss(self, node: str, reason: str) -> None:
        self.cohort.dismiss(node, reason)

    def readmit(self, least: int = 0) -> list[str]:
        return self.cohort.readmit(least)

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
