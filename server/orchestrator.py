"""The orchestrator: connects node registry, scheduler and supervisors in one asyncio event loop."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError, FarshoreError
from ..core.files import private_folder
from ..core.handshake import ResumeFrom
from ..core.nodes import NodeInfo, RoleCount, RoleRequest, place
from ..proto import control_pb2 as pb
from ..runs.sinks import check_sinks
from ..runs.states import ENDED
from ..runs.store import RunStore
from .code_approval import CodeApproval
from .credentials import Credentials
from .data_service import Route
from .identity import Identity, open_identity
from .node_admission import NodeAdmission
from .node_assignment import NodeAssignment
from .node_events import NodeEvents
from .node_keys import NodeKeys
from .options import ServeOptions
from .profiles import info_of
from .registry import Node, Registry
from .role_requests import requests_of, resolve
from .run import Run
from .run_repository import RunRepository
from .socket_count import SocketCount
from .socket_folder import SocketFolder
from .submission import Submission, check_capacity
from .supervisor import Supervisor

_log = logging.getLogger(__name__)


_MOST_WAIT_SECONDS = 366 * 86400.0


class Orchestrator:
    """The state and operations of one server; used by :mod:`~farshore.server.lifecycle` and the gRPC services.

    Parameters
    ----------
    options : ServeOptions
    """

    def __init__(self, options: ServeOptions) -> None:
        self.options = options
        check_sinks(options.sinks)
        self.identity: Identity = open_identity(options)
        self._store = _open_store(options)
        self.credentials = Credentials(self._store, self.identity.fingerprint)
        self.approval = CodeApproval(options.accept_apps, options.ask)
        self.registry = Registry(options.heartbeat_seconds, self.schedule)
        self.runs = RunRepository(self._store, private_folder(options.runs_directory or options.home / "runs"))
        self.routes: dict[str, Route] = {}
        self.node_events = NodeEvents(self.registry, self.runs, self.credentials)
        self.node_keys = NodeKeys(self.credentials, self.registry, self.runs, self.routes, self.node_events.lost)
        self.admission = NodeAdmission(self.credentials, self.registry, self.node_keys.contested)
        self._sockets = SocketFolder(self.identity.server_id)
        self._socket_count = SocketCount()
        self._supervisors: dict[str, asyncio.Task[None]] = {}
        self._requeueing: set[asyncio.Task[None]] = set()
        self._heartbeat_task: asyncio.Task[None] | None = None
        self._assignment = NodeAssignment(self.registry, self.runs, self._is_schedulable)

    # ---- lifecycle ---------------------------------------------------------------------------------------------

    def start(self) -> str:
        """Load nodes and runs, and requeue waiting runs; returns a join token at the home's first start, else ''."""
        first = not self.credentials.has_tokens()
        self.registry.load(self.credentials.nodes())
        for node in self.registry:
            if (contest := self.credentials.rolling.contested(node.name)) is not None:
                node.contested = contest.reason
        for run in self.runs.load():
            task = asyncio.create_task(self._requeue(run), name=f"requeue {run.id}")
            self._requeueing.add(task)
            task.add_done_callback(self._requeueing.discard)
        self._heartbeat_task = asyncio.create_task(self._watch_heartbeats(), name="heartbeats")
        return str(self.credentials.create_token(self.options.token_hours * 3600)) if first else ""

    async def stop(self) -> None:
        """Interrupt the active runs and end the nodes' control streams."""
        for task in (self._heartbeat_task, *self._requeueing):
            if task is not None:
                task.cancel()
        for run in self.runs:
            if run.id in self._supervisors:
                run.end_early("interrupted", "the server stopped; 'farshore runs resume' continues it")
        tasks = list(self._supervisors.values())
        if tasks:
            await asyncio.wait(tasks, timeout=4)
        for node in self.registry:  # gRPC prints a traceback for each stream that it has to cancel
            self.registry.end_stream(node)

    def release(self) -> None:
        """Release the home, the store and the sockets."""
        self._socket_count.close()
        self._store.close()
        self._sockets.remove()
        self.identity.release()

    async def _watch_heartbeats(self) -> None:
        while True:
            await asyncio.sleep(self.registry.next_expiry())
            for node in self.registry.expire():
                _log.warning("node %s is lost: %s", node.name, node.reason)
                self.node_events.lost(node)

    # ---- runs --------------------------------------------------------------------------------------------------

    def submit(self, request: pb.SubmitRequest, submission: Submission, *, by_operator: bool) -> Run:
        """Create a run and start its supervisor; code submitted by the operator counts as approved.

        Raises
        ------
        ConfigError
            A node is named twice, the roles are not those of the method, or the run needs more nodes than this server
            can carry.
        RefusedError
            The run's code is not approved.
        """
        self.approval.check(submission.code, admitted=by_operator)
        asked = requests_of(request)
        requests = resolve(request.workload, submission.roles, asked, may_join=submission.may_join)
        check_capacity(requests)
        seed = request.seed if request.HasField("seed") else secrets.randbits(31)
        run = self.runs.create(
            workload=request.workload,
            config_json=submission.config_json,
            seed=seed,
            requests=requests,
            data=dict(request.data),
            wait_seconds=_wait_seconds(request.wait_seconds),
        )
        _apply(run, submission)
        run.admitted = by_operator
        self._start_supervisor(run)
        return run

    def open_run(self, node: Node, request: pb.OpenRun, submission: Submission) -> Run:
        """Create a run that a node has opened, with itself as the only node.

        Raises
        ------
        ConfigError
            Another run of the node is already waiting.
        RefusedError
            The run's code is not approved.
        """
        self.approval.check(submission.code, admitted=False)
        # A run that still occupies the node is fine: the new one waits until it has ended.
        if any(run.requested_nodes == (node.name,) for run in self.runs.waiting()):
            raise ConfigError(f"a run of the node '{node.name}' is already waiting", hint="wait for it or cancel it")
        run = self.runs.create(
            workload=request.workload,
            config_json=submission.config_json,
            seed=request.seed if request.HasField("seed") else secrets.randbits(31),
            requests=(RoleRequest(submission.roles[0].name, RoleCount(1, 1), (node.name,)),),
            data={},
        )
        _apply(run, submission)
        run.no_restart = True
        self._start_supervisor(run)
        return run

    async def _requeue(self, run: Run) -> None:
        """Start the supervisor of a run that was waiting when the server stopped.

        In the background: importing its method may take long, or fail.
        """
        try:
            submission = await asyncio.to_thread(Submission.validate, run.workload, run.config_json, run.data)
            self.approval.check(submission.code, admitted=False)
            _apply(run, submission)
        except FarshoreError as error:
            # The method is missing or has changed, or only the operator who submitted the run had approved its code.
            run.state, run.reason = "failed", str(error)
            self.runs.save(run)
        else:
            self._start_supervisor(run)

    def cancel(self, run: Run) -> None:
        """Cancel a run; no effect if it has ended."""
        if run.state not in ENDED:
            run.end_early("cancelled", "cancelled by the operator")

    def resume(self, run: Run, submission: Submission, *, by_operator: bool, start: ResumeFrom | None = None) -> None:
        """Continue a run that was interrupted, failed or cancelled, with the same nodes; see :meth:`submit`.

        Parameters
        ----------
        run : Run
        submission : Submission
        by_operator : bool
        start : ResumeFrom, optional
            Where to continue; by default, from the newest step that all programs hold.

        Raises
        ------
        ConfigError
            The run is still active, has finished, or was opened by its node.
        RefusedError
            The run's code is not approved.
        """
        if run.state == "finished" or run.state not in ENDED or run.id in self._supervisors:
            raise ConfigError(f"cannot resume run {run.id}, which is {run.state}")
        if submission.node_may_open:
            raise ConfigError(
                f"cannot resume run {run.id}, whose node was a user's process", hint="run the script again"
            )
        self.approval.check(submission.code, admitted=run.admitted or by_operator)
        _apply(run, submission)
        run.admitted = run.admitted or by_operator
        run.epoch += 1
        run.end_request, run.ended = None, 0.0
        run.resume_from = start or ResumeFrom()
        run.state, run.reason = "waiting", "resumed"
        self.runs.save(run)
        self._start_supervisor(run)

    def _start_supervisor(self, run: Run) -> None:
        supervisor = Supervisor(run, self, self.options.restarts_per_hour)
        task = asyncio.create_task(supervisor.supervise(), name=f"run {run.id}")
        self._supervisors[run.id] = task
        task.add_done_callback(lambda _: self._supervisor_ended(run))

    def _supervisor_ended(self, run: Run) -> None:
        self._supervisors.pop(run.id, None)
        for name in run.nodes:
            node = self.registry.get(name)
            if node is not None and node.run == run.id:
                node.run = ""
                if node.contested:
                    self.registry.end_stream(node)
        run.assigned.clear()
        run.programs.clear()
        run.notify()
        if _is_final(run):
            self._announce_finished(run)
        self.schedule()

    def _announce_finished(self, run: Run) -> None:
        """Let the nodes of a run delete their checkpoints of it."""
        for name in run.nodes:
            if (node := self.registry.get(name)) is not None:
                self.registry.command(node, pb.NodeCommand(finished=pb.RunsFinished(run_ids=[run.id])))

    def finished_runs(self, ids: Iterable[str]) -> list[str]:
        """Return those of ``ids`` that have ended and are never resumed; unknown ones are left out."""
        return [run.id for name in ids if (run := self.runs.find(name)) is not None and _is_final(run)]

    # ---- scheduling --------------------------------------------------------------------------------------------

    def _is_schedulable(self, run: Run) -> bool:
        return run.id in self._supervisors and self.approval.is_approved(run)

    def schedule(self) -> None:
        """Assign nodes to waiting runs, and free nodes to runs that they may join."""
        self._assignment.schedule()

    async def assign(self, run: Run) -> None:
        """Wait until the run's code is approved and its nodes are assigned."""
        run.assigned.clear()
        await self.approval.request(run)
        self.schedule()
        await run.assigned.wait()

    # ---- SupervisorHost ------------------------------------------------------------------------------

    def launch_parameters(self, run: Run) -> dict[str, Any]:
        """Return the launch parameters of the run process, without the tickets."""
        ports = self.options.data_ports
        pair = self.identity.pair
        direct = {"host": self.options.host, "first": ports[0], "last": ports[1]} if ports else None
        if direct and pair:
            direct |= {"certificate": pair.certificate.decode(), "key": pair.key.decode()}
        data = {**{n: str(p) for n, p in self.options.data.items()}, **run.data}
        return {
            "run": run.id,
            "workload": run.workload,
            "config": run.config_json,
            "seed": run.seed,
            "epoch": run.epoch,
            "nodes": [self.node_info(run, name).to_json() for name in run.nodes],
            "may_join": run.may_join,
            "directory": str(run.directory),
            "data": data,
            "admitted": run.code.digest if run.code and self.approval.is_approved(run) else "",
            "direct": direct,
            "sinks": list(self.options.sinks),
            "socket": str(self._sockets.socket(run.id, run.epoch)),
            "resume": run.resume_from.to_json() if run.resume_from is not None else None,
        }

    def node_info(self, run: Run, name: str) -> NodeInfo:
        """Role, shard, labels and profile of a node of a run."""
        return info_of(self.registry.get(name), name, run.cohort[name], place(run.cohort)[name])

    def start_program(self, run: Run, node: str, command: pb.StartProgram) -> bool:
        """Send a start command to a node; returns False if the node is not reachable."""
        found = self.registry.get(node)
        if found is None or found.state != "connected":
            return False
        if not self.registry.command(found, pb.NodeCommand(start=command)):
            return False
        run.programs[node] = command.epoch
        return True

    def is_connected(self, node: str) -> bool:
        """Return whether a node can receive commands."""
        found = self.registry.get(node)
        return found is not None and found.state == "connected" and found.commands is not None

    def stop_programs(self, run: Run, reason: str) -> None:
        """Stop the programs of the run's current restart epoch on all its nodes."""
        stop = pb.StopProgram(run_id=run.id, epoch=run.epoch, reason=reason)
        for name in run.nodes:
            if (node := self.registry.get(name)) is not None:
                self.registry.command(node, pb.NodeCommand(stop=stop))
        run.programs.clear()

    def add_route(self, ticket: str, run: Run, node: str, socket: Path) -> None:
        """Route connections with ``ticket`` to the run process at ``socket``."""
        self.routes[ticket] = Route(run.id, node, socket)

    def remove_routes(self, run: Run) -> None:
        """Remove the routes of the run."""
        for ticket in [t for t, route in self.routes.items() if route.run_id == run.id]:
            del self.routes[ticket]

    def data_connected(self, run_id: str, node: str, port: int, peer: str) -> None:
        """Record that a data connection of ``node`` was accepted on ``port`` from ``peer``."""
        self._socket_count.connected(run_id, node, port, peer)

    def write_socket_counts(self, run: Run) -> None:
        """Write the socket byte counts of the run's current epoch to the run directory."""
        self._socket_count.write(run)

    def save(self, run: Run) -> None:
        """Store the run's state and notify its followers."""
        self.runs.save(run)
        if run.may_join and run.state == "running":
            self.schedule()  # nodes that are free already may join


def _apply(run: Run, submission: Submission) -> None:
    """Take over what a run's method says of it."""
    run.roles, run.may_join, run.code = submission.roles, submission.may_join, submission.code


def _wait_seconds(seconds: float) -> float:
    if not 0 <= seconds <= _MOST_WAIT_SECONDS:
        raise ConfigError("a run can wait for nodes for at most a year")
    return seconds


def _is_final(run: Run) -> bool:
    return run.state == "finished" or (run.no_restart and run.state in ENDED)


def _open_store(options: ServeOptions) -> RunStore:
    if options.store_url:
        return RunStore(options.store_url)
    path = options.home / "runs.sqlite"
    path.touch(mode=0o600)
    return RunStore(path)
