"""Runs all programs of a run as threads of one process, connected by in-memory channels.

Node and server programs, messages, frames and frame sizes are those of a distributed run, including the handshake
messages that select the checkpoint to resume from. Link speed and latency are not simulated.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import BaseModel

from ..core.errors import DataError, FarshoreError, PeerLostError, RunCancelledError, RunFailedError
from ..core.handshake import begin, common_step, hello, own_step, read_begin, read_hello
from ..core.message import Array, Message
from ..core.seeds import Seed
from ..core.session import Channel, Code, RunInfo, Workload
from ..core.transfer import Recorder
from ..runs.checkpoints import CheckpointStore
from ..runs.traffic import Traffic
from ..wire.inbox import receive_any
from ..wire.memory import MemoryChannel, pair

logger = logging.getLogger(__name__)

OnProgress: TypeAlias = Callable[[int, int, Mapping[str, float | str]], None]
OnMetrics: TypeAlias = Callable[[int, dict[str, float]], None]


@dataclass
class _Session:
    """State and services common to the server's and the nodes' sessions of an in-process run."""

    run: RunInfo
    checkpoints: CheckpointStore
    paths: Mapping[str, Path]
    cancelled: threading.Event
    owner: str
    resume_step: int | None = field(default=None, kw_only=True)

    def save_checkpoint(self, step: int, tensors: Mapping[str, Array], meta: Mapping[str, Any]) -> None:
        self.checkpoints.save(step, tensors, meta)

    def load_checkpoint(self, step: int) -> tuple[dict[str, Array], dict[str, Any]]:
        return self.checkpoints.load(step)

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
class _NodeSession(_Session):
    node: str
    channel: Channel
    shard: tuple[int, int]
    #: Empty: threads of one process cannot be ranks of a process group.
    peer_interface: str = ""


@dataclass
class _ServerSession(_Session):
    channels: Mapping[str, MemoryChannel]
    on_progress: OnProgress | None
    on_metrics: OnMetrics | None
    traffic_counter: Traffic | None

    def receive_any(self, nodes: Sequence[str] | None = None, timeout: float | None = None) -> tuple[str, Message]:
        chosen = self.channels if nodes is None else {n: self.channels[n] for n in nodes}
        return receive_any(chosen, timeout)

    def dismiss(self, node: str, reason: str) -> None:
        self.channels[node].close(reason=reason)

    def readmit(self, least: int = 0) -> list[str]:
        return []

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


@dataclass
class InProcessRun:
    """A run whose server is the calling thread and whose nodes are threads of the same process.

    Parameters
    ----------
    workload : Workload
        The method to run.
    config : BaseModel
        An instance of ``workload.config``.
    directory : Path
        Directory of the programs' checkpoints. If it holds checkpoints already, the run resumes from them.
    nodes : sequence of str
        Names of the nodes, in cohort order.
    seed : int
        Root of the run's seed tree.
    data : Mapping[str, Path]
        Paths of data sets by name, the same for all nodes and the server.
    recorder : callable, optional
        Called with a :class:`~farshore.core.transfer.Transfer` for every frame.
    on_progress, on_metrics : callable, optional
        Called with the progress and metrics that the server program reports.
    cancelled : threading.Event
        Cancels the run when set; any thread may set it.
    """

    workload: Workload
    config: BaseModel
    directory: Path
    nodes: Sequence[str] = ("edge-0",)
    seed: int = 0
    data: Mapping[str, Path] = field(default_factory=dict)
    recorder: Recorder | None = None
    on_progress: OnProgress | None = None
    on_metrics: OnMetrics | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)

    def run(self) -> dict[str, Any]:
        """Run all programs to completion and return the server program's result.

        All node threads have ended when this returns or raises.

        Raises
        ------
        FarshoreError
            The error of the first program that failed. A node program's error names the node.
        """
        traffic = Traffic(self.recorder) if self.recorder else None
        pairs = {node: pair(node, recorder=traffic.record if traffic else None) for node in self.nodes}
        server, nodes = self._sessions(pairs, traffic)
        failures: list[BaseException] = []
        threads = [
            threading.Thread(target=self._run_node, name=f"node {n.node}", args=(n, pairs, failures)) for n in nodes
        ]
        for thread in threads:
            thread.start()
        result: dict[str, Any] = {}
        lost: FarshoreError | None = None
        try:
            _exchange_checkpoints(server, from_common_step=self.workload.on_lost_node == "restart")
            result = self.workload.server_program(server, self.config)
        except (PeerLostError, RunFailedError) as error:
            lost = error
        finally:
            # A node may still be receiving: closing the channels unblocks it, so that the join returns.
            for server_end, _ in pairs.values():
                server_end.close()
            for thread in threads:
                thread.join()
        if failures:
            raise failures[0]
        if lost is not None:
            raise lost
        return result

    def _sessions(
        self, pairs: Mapping[str, tuple[MemoryChannel, MemoryChannel]], traffic: Traffic | None
    ) -> tuple[_ServerSession, list[_NodeSession]]:
        stores = {name: CheckpointStore(self.directory / name) for name in ("server", *self.nodes)}
        info = RunInfo(self.directory.name, self.workload.name, Seed(self.seed), 0, tuple(self.nodes), self.directory)
        shared: dict[str, Any] = {"run": info, "paths": self.data, "cancelled": self.cancelled}
        server = _ServerSession(
            **shared,
            checkpoints=stores["server"],
            owner="the server",
            channels={node: server_end for node, (server_end, _) in pairs.items()},
            on_progress=self.on_progress,
            on_metrics=self.on_metrics,
            traffic_counter=traffic,
        )
        nodes = [
            _NodeSession(
                **shared,
                checkpoints=stores[node],
                owner=f"node '{node}'",
                node=node,
                channel=pairs[node][1],
                shard=(index, len(self.nodes)),
            )
            for index, node in enumerate(self.nodes)
        ]
        return server, nodes

    def _run_node(
        self,
        session: _NodeSession,
        pairs: Mapping[str, tuple[MemoryChannel, MemoryChannel]],
        failures: list[BaseException],
    ) -> None:
        try:
            session.channel.send(hello(session.checkpoints.steps()))
            session.resume_step = read_begin(session.channel.receive())
            self.workload.node_program(session, self.config)
        except PeerLostError as error:
            logger.debug("%s: %s", session.owner, error)
        except BaseException as error:
            failures.append(_with_owner(error, session.owner))
            # Not a PeerLostError: a method may continue without a lost peer, and this failure must end the run.
            for server_end, _ in pairs.values():
                server_end.fail(RunFailedError(f"{session.owner} failed: {type(error).__name__}: {error}"))


def _exchange_checkpoints(server: _ServerSession, *, from_common_step: bool) -> None:
    """Collect the nodes' checkpoint steps, choose the resume step and send it to each node.

    With ``from_common_step`` it is the newest step that all programs hold, otherwise the server's newest.
    """
    node_steps = {node: read_hello(channel.receive(), node, torch=False) for node, channel in server.channels.items()}
    server_steps = server.checkpoints.steps()
    server.resume_step = common_step(server_steps, node_steps) if from_common_step else max(server_steps, default=None)
    for node, channel in server.channels.items():
        channel.send(begin(own_step(node_steps[node], server.resume_step)))


def _with_owner(error: BaseException, owner: str) -> BaseException:
    """Add the failing program to an error's message; errors that are not farshore's become a RunFailedError."""
    if isinstance(error, RunCancelledError):
        return error
    if isinstance(error, FarshoreError):
        error.message = f"{owner}: {error.message}"
        return error
    failure = RunFailedError(f"{owner} failed: {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure
