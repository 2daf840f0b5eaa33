"""The whole of a run in one process: each program a thread, channels in memory, every frame accounted as on a network.

The programs are the ones that real nodes run; so are the messages, the frames and their sizes, the first two by which
both sides agree on where to begin included. What is missing is time: nothing is throttled here.
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
    """What both sides of an in-process run see."""

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
        """Whoever simulates on a machine runs what they chose."""

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
                f"{self.owner} has no data set called '{name}'", hint=f"give it one: --data {name}=PATH"
            ) from None


@dataclass
class _NodeSession(_Session):
    node: str
    channel: Channel
    shard: tuple[int, int]
    #: Threads of one process: none can be a rank of its own.
    peer_interface: str = ""


@dataclass
class _ServerSession(_Session):
    channels: Mapping[str, MemoryChannel]
    on_progress: OnProgress | None
    on_metrics: OnMetrics | None
    counted: Traffic | None

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
        """Threads send each other nothing."""

    def traffic(self) -> Mapping[str, int]:
        return self.counted.bytes() if self.counted else {}

    def progress(self, done: int, total: int, **values: float | str) -> None:
        if self.on_progress:
            self.on_progress(done, total, values)


@dataclass
class InProcessRun:
    """A run whose nodes are threads.

    Parameters
    ----------
    workload : Workload
        The method.
    config : BaseModel
        An instance of ``workload.config``.
    directory : Path
        Where the programs keep their checkpoints; an existing one is resumed from.
    nodes : sequence of str
        Names of the nodes, in cohort order.
    seed : int
        Root of the run's seed tree.
    data : Mapping[str, Path]
        Data sets, the same for every node and the server.
    recorder : callable, optional
        Gets a :class:`~farshore.core.transfer.Transfer` for every frame.
    on_progress, on_metrics : callable, optional
        Get what the server program reports.
    cancelled : threading.Event
        Set it, from any thread, to cancel the run.
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
        """Run all programs to the end; returns the server program's result.

        Every thread has ended when this returns or raises.

        Raises
        ------
        FarshoreError
            Whatever the first failing program raised; a node's failure names the node.
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
            _agree(server, together=self.workload.on_lost_node == "restart")
            result = self.workload.server_program(server, self.config)
        except (PeerLostError, RunFailedError) as error:
            lost = error
        finally:
            # Whatever the server program left unsaid, nobody may wait for it: an open channel would block the join.
            for mine, _ in pairs.values():
                mine.close()
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
            channels={node: mine for node, (mine, _) in pairs.items()},
            on_progress=self.on_progress,
            on_metrics=self.on_metrics,
            counted=traffic,
        )
        nodes = [
            _NodeSession(
                **shared,
                checkpoints=stores[node],
                owner=f"node '{node}'",
                node=node,
                channel=pairs[node][1],
                shard=(place, len(self.nodes)),
            )
            for place, node in enumerate(self.nodes)
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
            failures.append(_named(error, session.owner))
            for theirs, _ in pairs.values():  # no lost peer: that, a method may go on without
                theirs.fail(RunFailedError(f"{session.owner} failed: {type(error).__name__}: {error}"))


def _agree(server: _ServerSession, *, together: bool) -> None:
    """Hear every node's checkpoints and tell all of them where to begin, as a run process does."""
    held = {node: read_hello(channel.receive(), node, torch=False) for node, channel in server.channels.items()}
    own = server.checkpoints.steps()
    server.resume_step = common_step(own, held) if together else max(own, default=None)
    for node, channel in server.channels.items():
        channel.send(begin(own_step(held[node], server.resume_step)))


def _named(error: BaseException, owner: str) -> BaseException:
    """The failure of a node program as its run's: of the same kind where farshore raised it, and naming the node."""
    if isinstance(error, RunCancelledError):
        return error
    if isinstance(error, FarshoreError):
        error.message = f"{owner}: {error.message}"
        return error
    failure = RunFailedError(f"{owner} failed: {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure
