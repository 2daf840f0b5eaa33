"""Runs all programs of a run as threads of one process, connected by in-memory channels.

Node and server programs, messages, frames and frame sizes are those of a distributed run, including the handshake
messages that select the checkpoint to resume from. Links and clocks are those of a
:class:`~farshore.simulations.virtual_network.VirtualNetwork`, if there is one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import BaseModel

from ..core.errors import FarshoreError, PeerLostError, RunCancelledError, RunFailedError
from ..core.handshake import begin, hello, newest_own_step, read_begin, read_hello, resume_step
from ..core.node_metrics import KIND as METRICS
from ..core.node_metrics import read_metrics
from ..core.nodes import DEFAULT_ROLE, NodeInfo, may_join, place
from ..core.seeds import Seed
from ..core.session import RunInfo, Workload
from ..core.transfer import Recorder
from ..runs.checkpoints import CheckpointStore
from ..runs.state_store import StateStore
from ..runs.traffic import Traffic
from ..wire.cohort import Cohort
from ..wire.memory import MemoryChannel, pair
from .in_process_sessions import InProcessNodeSession, InProcessServerSession, OnMetrics, OnProgress
from .virtual_network import VirtualNetwork

__all__ = ["InProcessRun", "OnMetrics", "OnProgress"]

logger = logging.getLogger(__name__)

OnNodeMetrics: TypeAlias = Callable[[str, int, dict[str, float]], None]


@dataclass(slots=True)
class _Program:
    """The newest program of a node: its two channel ends and its thread."""

    session: InProcessNodeSession
    server_end: MemoryChannel
    node_end: MemoryChannel
    thread: threading.Thread | None = None
    killed: bool = False


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
        Directory of the programs' checkpoints and streams. If it holds checkpoints already, the run resumes from them.
    nodes : sequence of str
        Names of the nodes, in cohort order.
    seed : int
        Root of the run's seed tree.
    data : Mapping[str, Path]
        Paths of data sets by name, the same for all nodes and the server.
    roles : Mapping[str, str]
        Roles of nodes that play another than the default one.
    cache : Path, optional
        Folder with a cache for each node, kept between runs. By default it is in ``directory``, so that what a run
        sends does not depend on earlier runs.
    recorder : callable, optional
        Called with a :class:`~farshore.core.transfer.Transfer` for every frame.
    on_progress, on_metrics : callable, optional
        Called with the progress and metrics that the server program reports.
    on_node_metrics : callable, optional
        Called with node, step and figures that a node program reports.
    on_log : callable, optional
        Called with lines that programs log.
    cancelled : threading.Event
        Cancels the run when set; any thread may set it.
    epoch : int
        How often the run was resumed.
    state : callable, optional
        Returns the state store of ``server`` or of a node, by name; by default in a folder of that name.
    network : VirtualNetwork, optional
        Virtual clocks and links of all programs. Without it, messages take no time. Nodes cannot be killed or join.
    """

    workload: Workload
    config: BaseModel
    directory: Path
    nodes: Sequence[str] = ("edge-0",)
    seed: int = 0
    data: Mapping[str, Path] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)
    cache: Path | None = None
    recorder: Recorder | None = None
    on_progress: OnProgress | None = None
    on_metrics: OnMetrics | None = None
    on_node_metrics: OnNodeMetrics | None = None
    on_log: Callable[[str], None] | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)
    epoch: int = 0
    state: Callable[[str], StateStore] | None = None
    network: VirtualNetwork | None = None

    def __post_init__(self) -> None:
        self._traffic = Traffic(self.recorder) if self.recorder else None
        self._programs: dict[str, _Program] = {}
        self._greeters: list[threading.Thread] = []
        self._failures: list[BaseException] = []
        self._epoch = self.epoch
        self._lock = threading.Lock()
        self._server: InProcessServerSession | None = None

    def run(self) -> dict[str, Any]:
        """Run all programs to completion and return the server program's result.

        All node threads have ended when this returns or raises.

        Raises
        ------
        FarshoreError
            The error of the first program that failed. A node program's error names the node.
        """
        infos = {
            n: NodeInfo(n, self._role(n), shard) for n, shard in place({n: self._role(n) for n in self.nodes}).items()
        }
        for node in self.nodes:
            self._programs[node] = self._program(infos[node], self.epoch)
        ends = {node: program.server_end for node, program in self._programs.items()}
        cohort = Cohort(ends, infos, may_join=may_join(self.workload))
        self._server = server = InProcessServerSession(
            run=self._info(self.epoch),
            state=self._state("server"),
            paths=self.data,
            cancelled=self.cancelled,
            owner="the server",
            cohort=cohort,
            on_progress=self.on_progress,
            on_metrics=self.on_metrics,
            traffic_counter=self._traffic,
            on_log=self.on_log,
            network=self.network,
        )
        for program in self._programs.values():
            self._start(program)
        result: dict[str, Any] = {}
        lost: FarshoreError | None = None
        try:
            self._exchange_checkpoints(server)
            result = self.workload.server_program(server, self.config)
        except (PeerLostError, RunFailedError) as error:
            lost = error
        finally:
            self._end(cohort)
        if self._failures:
            raise self._failures[0]
        if lost is not None:
            raise lost
        return result

    def kill(self, node: str) -> None:
        """Kill the program of a node, as a crash would, and start it again; from any thread but the node's own.

        Only for workloads that continue without lost nodes: the server program sees a loss and then a return.
        """
        with self._lock:
            program = self._programs[node]
            program.killed = True
        program.server_end.fail(PeerLostError(f"node {node}: its program was killed"))
        program.node_end.fail(PeerLostError(f"node {node}: this program was killed"))
        if program.thread is not None:
            program.thread.join()
        self._bring_in(replace(program.session.info))

    def join(self, node: str, role: str = DEFAULT_ROLE) -> None:
        """Let another node join the run in progress; from any thread."""
        with self._lock:
            if node in self._programs:
                raise ValueError(f"node '{node}' already takes part in the run")
            count = sum(p.session.info.role == role for p in self._programs.values())
        self._bring_in(NodeInfo(node, role, (count, count + 1)))

    def _bring_in(self, info: NodeInfo) -> None:
        """Start a program and offer its channel to the server program once the two ends have shaken hands."""
        server = self._server
        assert server is not None, "the run is not in progress"
        assert self.network is None, "nodes neither return nor join in virtual time"
        with self._lock:
            self._epoch += 1
            program = self._programs[info.name] = self._program(info, self._epoch)
        self._start(program)

        def greet() -> None:
            try:
                steps = read_hello(program.server_end.receive(), info.name, torch=False)
                program.server_end.send(begin(newest_own_step(steps, server.newest_step)))
            except PeerLostError:
                return
            server.cohort.offer(info.name, program.server_end, info)

        thread = threading.Thread(target=greet, name=f"greet {info.name}")
        self._greeters.append(thread)
        thread.start()

    # ---- parts ---------------------------------------------------------------------------------------------------

    def _role(self, node: str) -> str:
        return self.roles.get(node, DEFAULT_ROLE)

    def _info(self, epoch: int) -> RunInfo:
        return RunInfo(
            self.directory.name, self.workload.name, Seed(self.seed), epoch, tuple(self.nodes), self.directory
        )

    def _state(self, owner: str) -> StateStore:
        if self.state is not None:
            return self.state(owner)
        folder = self.directory / owner
        return StateStore(CheckpointStore(folder), folder / "streams")

    def _program(self, info: NodeInfo, epoch: int) -> _Program:
        record = self._traffic.record if self._traffic else None
        server_end: MemoryChannel
        node_end: MemoryChannel
        if self.network is None:
            server_end, node_end = pair(info.name, recorder=record, attempt=epoch)
        else:
            server_end, node_end = self.network.pair(info.name, record, epoch)
        server_end.handlers = {METRICS: lambda message: self._node_metrics(info.name, message)}
        session = InProcessNodeSession(
            run=self._info(epoch),
            state=self._state(info.name),
            paths=self.data,
            cancelled=self.cancelled,
            owner=f"node '{info.name}'",
            on_log=self.on_log,
            network=self.network,
            info=info,
            channel=node_end,
            cache=(self.cache or self.directory / "cache") / info.name,
        )
        return _Program(session, server_end, node_end)

    def _node_metrics(self, node: str, message: Any) -> None:
        figures = read_metrics(message, node)
        if self.on_node_metrics:
            self.on_node_metrics(node, message.step, figures)

    def _start(self, program: _Program) -> None:
        session = program.session
        program.thread = threading.Thread(target=self._run_node, name=f"node {session.node}", args=(program,))
        program.thread.start()

    def _run_node(self, program: _Program) -> None:
        session = program.session
        try:
            session.channel.send(hello(session.state.steps()))
            session.begin_from(read_begin(session.channel.receive()))
            with _own_process_groups(self.workload):
                self.workload.node_program(session, self.config)
        except PeerLostError as error:
            logger.debug("%s: %s", session.owner, error)
        except BaseException as error:
            if program.killed:  # whatever its lost channel made of it
                logger.debug("%s: %s", session.owner, error)
                return
            self._failures.append(_with_owner(error, session.owner))
            # Not a PeerLostError: a method may continue without a lost peer, and this failure must end the run.
            failure = RunFailedError(f"{session.owner} failed: {type(error).__name__}: {error}")
            for other in list(self._programs.values()):
                other.server_end.fail(failure)
            if self._server is not None:
                self._server.cohort.fail(failure)  # it may wait for nodes
        finally:
            session.state.close()
            if self.network is not None:
                self.network.finish(session.node)

    def _exchange_checkpoints(self, server: InProcessServerSession) -> None:
        """Collect the nodes' checkpoint steps, choose the resume step and send it to each node.

        It is the newest step that all programs hold or, where the workload continues without lost nodes, the server's
        newest.
        """
        channels, server_steps = server.cohort.channels, server.state.steps()
        node_steps = {node: read_hello(channel.receive(), node, torch=False) for node, channel in channels.items()}
        from_common_step = self.workload.on_lost_node == "restart"
        server.begin_from(resume_step(server_steps, node_steps if from_common_step else {}))
        for node, channel in channels.items():
            channel.send(begin(newest_own_step(node_steps[node], server.resume_step)))

    def _end(self, cohort: Cohort) -> None:
        """Close all channels, which unblocks node programs that still receive, and wait for all threads."""
        for channel in (*cohort.channels.values(), *cohort.waiting()):
            channel.close()
        for program in self._programs.values():
            program.server_end.close()
        for thread in (*self._greeters, *(p.thread for p in self._programs.values() if p.thread is not None)):
            thread.join()
        assert self._server is not None
        self._server.state.close()


def _own_process_groups(workload: Workload) -> AbstractContextManager[None]:
    """Return a context in which the calling thread can be a rank of ``torch.distributed``."""
    if not getattr(workload, "uses_torch", False):
        return nullcontext()
    import torch

    if not torch.distributed.is_available():
        return nullcontext()
    from ..models.torch_internals import own_process_groups

    return own_process_groups()


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
