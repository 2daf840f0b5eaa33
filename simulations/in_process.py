"""The whole of a run in one process: each program a thread, channels in memory, every frame accounted as on a network.

The programs are the ones that real nodes run; so are the messages, the frames and their sizes. What is missing is time:
nothing is throttled here.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ..core.errors import DataError, PeerLostError, RunCancelledError, RunFailedError
from ..core.message import Array, Message
from ..core.seeds import Seed
from ..core.session import Channel, RunInfo, Workload
from ..core.transfer import Recorder
from ..runs.checkpoints import CheckpointStore
from ..wire.inbox import receive_any
from ..wire.memory import MemoryChannel, pair

logger = logging.getLogger(__name__)

OnProgress = Callable[[int, int, Mapping[str, float | str]], None]


@dataclass
class _Session:
    """What both sides of an in-process run see."""

    run: RunInfo
    resume_step: int | None
    checkpoints: CheckpointStore
    paths: Mapping[str, Path]
    cancelled: threading.Event
    owner: str

    def save_checkpoint(self, step: int, tensors: Mapping[str, Array], meta: Mapping[str, Any]) -> None:
        self.checkpoints.save(step, tensors, meta)

    def load_checkpoint(self, step: int) -> tuple[dict[str, Array], dict[str, Any]]:
        return self.checkpoints.load(step)

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
                f"{self.owner} has no data set called '{name}'", cure=f"give it one: --data {name}=PATH"
            ) from None


@dataclass
class _NodeSession(_Session):
    node: str
    channel: Channel
    shard: tuple[int, int]


@dataclass
class _ServerSession(_Session):
    channels: Mapping[str, MemoryChannel]
    on_progress: OnProgress | None
    on_metrics: Callable[[int, dict[str, float]], None] | None

    def receive_any(self, nodes: Sequence[str] | None = None, timeout: float | None = None) -> tuple[str, Message]:
        chosen = self.channels if nodes is None else {n: self.channels[n] for n in nodes}
        return receive_any(chosen, timeout)

    def metrics(self, step: int, **values: float) -> None:
        if self.on_metrics:
            self.on_metrics(step, values)

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
    data : Mapping[str, Path]
        Data sets, the same for every node and the server.
    recorder : callable, optional
        Gets a :class:`~farshore.core.transfer.Transfer` for every frame.
    """

    workload: Workload
    config: BaseModel
    directory: Path
    nodes: Sequence[str] = ("edge-0",)
    seed: int = 0
    data: Mapping[str, Path] = field(default_factory=dict)
    recorder: Recorder | None = None
    on_progress: OnProgress | None = None
    on_metrics: Callable[[int, dict[str, float]], None] | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)

    def run(self) -> dict[str, Any]:
        """Run all programs to the end; returns the server program's result.

        Raises
        ------
        FarshoreError
            Whatever the first failing program raised.
        """
        stores = {n: CheckpointStore(self.directory / n) for n in ("server", *self.nodes)}
        common = set.intersection(*(set(s.steps()) for s in stores.values()))
        info = RunInfo(self.directory.name, self.workload.name, Seed(self.seed), 0, tuple(self.nodes), self.directory)
        pairs = {node: pair(node, recorder=self.recorder) for node in self.nodes}
        base = {
            "run": info,
            "resume_step": max(common, default=None),
            "paths": self.data,
            "cancelled": self.cancelled,
        }
        server = _ServerSession(
            **base,
            checkpoints=stores["server"],
            owner="the server",
            channels={n: p[0] for n, p in pairs.items()},
            on_progress=self.on_progress,
            on_metrics=self.on_metrics,
        )
        errors: list[BaseException] = []
        threads = [
            threading.Thread(
                target=self._node,
                name=f"node {node}",
                args=(
                    _NodeSession(
                        **base,
                        checkpoints=stores[node],
                        owner=f"node '{node}'",
                        node=node,
                        channel=pairs[node][1],
                        shard=(place, len(self.nodes)),
                    ),
                    pairs,
                    errors,
                ),
            )
            for place, node in enumerate(self.nodes)
        ]
        for thread in threads:
            thread.start()
        try:
            return self._serve(server, pairs, errors)
        finally:
            for thread in threads:
                thread.join()

    def _serve(
        self,
        session: _ServerSession,
        pairs: Mapping[str, tuple[MemoryChannel, MemoryChannel]],
        errors: list[BaseException],
    ) -> dict[str, Any]:
        try:
            return self.workload.server_program(session, self.config)
        except PeerLostError:
            if errors:
                raise errors[0] from None
            raise
        except BaseException as error:
            for _, mine in pairs.values():
                mine.fail(PeerLostError(f"the server program ended: {error}"))
            raise

    def _node(
        self,
        session: _NodeSession,
        pairs: Mapping[str, tuple[MemoryChannel, MemoryChannel]],
        errors: list[BaseException],
    ) -> None:
        try:
            self.workload.node_program(session, self.config)
        except PeerLostError as error:
            logger.debug("%s: %s", session.owner, error)
        except BaseException as error:
            errors.append(error)
            reason = error if isinstance(error, RunFailedError) else f"{type(error).__name__}: {error}"
            for theirs, _ in pairs.values():
                theirs.fail(PeerLostError(f"{session.owner} failed: {reason}"))
