"""The orchestrator: registry, scheduler and supervisors, in one asyncio loop."""

from __future__ import annotations

import asyncio
import logging
import secrets
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError, FarshoreError, RefusedError, StorageError
from ..core.files import private_folder
from ..proto import control_pb2 as pb
from ..runs.sinks import check_sinks
from ..runs.states import ENDED
from ..runs.store import RunStore
from .code_approval import CodeApproval
from .credentials import Credentials
from .data_service import Route
from .identity import Identity, open_identity
from .options import ServeOptions
from .registry import Node, Registry
from .run import Event, Run
from .run_repository import RunRepository
from .scheduler import Candidate, Choice, Demand, choose
from .socket_count import SocketCount
from .socket_folder import SocketFolder
from .submission import Submission
from .supervisor import Supervisor

_log = logging.getLogger(__name__)


class Orchestrator:
    """One server, in one asyncio loop: :mod:`~farshore.server.lifecycle` runs it, the ``*_service.py`` call it.

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
        self.consent = CodeApproval(options.accept_apps, options.ask)
        self.registry = Registry(options.heartbeat_seconds, self.schedule)
        self.book = RunRepository(self._store, private_folder(options.runs_directory or options.home / "runs"))
        self.doors: dict[str, Route] = {}
        self._sockets = SocketFolder(self.identity.server_id)
        self._counted = SocketCount()
        self._leading: dict[str, asyncio.Task[None]] = {}
        self._watching: asyncio.Task[None] | None = None

    # ---- life --------------------------------------------------------------------------------------------------

    def begin(self) -> str:
        """Take up what waited when the server went down; returns a join token at this home's first start, else ''."""
        first = not self.credentials.ever_used()
        self.registry.known(self.credentials.nodes())
        for run in self.book.open():
            self._take_up(run)
        self._watching = asyncio.create_task(self._watch_heartbeats(), name="heartbeats")
        return str(self.credentials.create_token(self.options.token_hours * 3600)) if first else ""

    async def end(self) -> None:
        """Interrupt the runs."""
        if self._watching is not None:
            self._watching.cancel()
        for run in self.book:
            if run.id in self._leading:
                run.end_early("interrupted", "the server stopped; 'farshore runs resume' continues it")
        tasks = list(self._leading.values())
        if tasks:
            await asyncio.wait(tasks, timeout=4)

    def release(self) -> None:
        """Give back the home, the store and the sockets."""
        self._counted.close()
        self._store.close()
        self._sockets.remove()
        self.identity.release()

    async def _watch_heartbeats(self) -> None:
        while True:
            await asyncio.sleep(self.registry.next_expiry())
            for node in self.registry.expire():
                _log.warning("node %s is lost: %s", node.name, node.reason)
                self.node_lost(node)

    # ---- runs --------------------------------------------------------------------------------------------------

    def submit(self, request: pb.SubmitRequest, method: Submission, *, by_operator: bool) -> Run:
        """Take a new run; what the operator of this server submits, they accept by that.

        Raises
        ------
        ConfigError
            The request contradicts itself.
        RefusedError
            It brings code that is not accepted here.
        """
        self.consent.check(method.code, admitted=by_operator)
        count = len(request.nodes) or request.node_count or 1
        if len(set(request.nodes)) != len(request.nodes):
            raise ConfigError("the same node is named twice")
        seed = request.seed if request.HasField("seed") else secrets.randbits(31)
        run = self.book.create(
            workload=request.workload,
            config_json=method.config_json,
            seed=seed,
            count=count,
            wanted=tuple(request.nodes),
            data=dict(request.data),
        )
        run.needs, run.code, run.admitted = method.needs, method.code, by_operator
        self._lead(run)
        return run

    def open_run(self, node: Node, request: pb.OpenRun, method: Submission) -> Run:
        """Take a run that a node opens with itself as the only one; its method allows that.

        Raises
        ------
        ConfigError
            Another run of the node waits already.
        RefusedError
            It brings code that is not accepted here.
        """
        self.consent.check(method.code, admitted=False)
        # One that still works for it is not in the way: a process that came back waits until its old run has ended.
        if any(run.wanted == (node.name,) for run in self.book.waiting()):
            raise ConfigError(f"a run of the node '{node.name}' waits already", hint="wait for it or cancel it")
        run = self.book.create(
            workload=request.workload,
            config_json=method.config_json,
            seed=request.seed if request.HasField("seed") else secrets.randbits(31),
            count=1,
            wanted=(node.name,),
            data={},
        )
        run.needs, run.code, run.one_epoch = method.needs, method.code, True
        self._lead(run)
        return run

    def _take_up(self, run: Run) -> None:
        """Lead a run that waited when the server went down."""
        try:
            method = Submission.of(run.workload, run.config_json)
            self.consent.check(method.code, admitted=False)
            run.needs, run.code = method.needs, method.code
        except FarshoreError as error:
            # Its method is gone or has changed, or its code was accepted by its submitter only.
            run.state, run.reason = "failed", str(error)
            self.book.save(run)
        else:
            self._lead(run)

    def cancel(self, run: Run) -> None:
        """Cancel a run in whatever state it is; one that has ended stays as it is."""
        if run.state not in ENDED:
            run.end_early("cancelled", "cancelled by the operator")

    def resume(self, run: Run, method: Submission, *, by_operator: bool) -> None:
        """Continue a run that was interrupted, failed or cancelled, with the same nodes; see :meth:`submit`.

        Raises
        ------
        ConfigError
            It is still running, has finished, or was opened by its node.
        RefusedError
            It brings code that is not accepted here.
        """
        if run.state == "finished" or run.state not in ENDED or run.id in self._leading:
            raise ConfigError(f"run {run.id} is {run.state}; there is nothing to resume")
        if method.node_may_open:
            raise ConfigError(f"run {run.id} was a user's process and the cloud together", hint="run the script again")
        self.consent.check(method.code, admitted=run.admitted or by_operator)
        run.needs, run.code, run.admitted = method.needs, method.code, run.admitted or by_operator
        run.wanted = run.nodes or run.wanted
        run.epoch += 1
        run.ending, run.ended = None, 0.0
        run.state, run.reason = "waiting", "resumed"
        self.book.save(run)
        self._lead(run)

    def _lead(self, run: Run) -> None:
        supervisor = Supervisor(run, self, self.options.restarts_per_hour)
        task = asyncio.create_task(supervisor.lead(), name=f"run {run.id}")
        self._leading[run.id] = task
        task.add_done_callback(lambda _: self._led(run))

    def _led(self, run: Run) -> None:
        self._leading.pop(run.id, None)
        for name in run.nodes:
            node = self.registry.get(name)
            if node is not None and node.run == run.id:
                node.run = ""
        run.assigned.clear()
        run.programs.clear()
        run.notify()
        self.schedule()

    # ---- scheduling --------------------------------------------------------------------------------------------

    def schedule(self) -> None:
        """Look whether waiting runs can have their nodes now; oldest first."""
        for run in self.book.waiting():
            if run.id not in self._leading or run.assigned.is_set() or not self.consent.given(run):
                continue
            choice = self._choice(run)
            if choice.nodes:
                run.nodes = choice.nodes
                for name in choice.nodes:
                    node = self.registry.get(name)
                    assert node is not None
                    node.run = run.id
                run.assigned.set()
            elif choice.reason != run.reason:
                run.reason = choice.reason
                run.notify()

    def _choice(self, run: Run) -> Choice:
        names = run.nodes if run.epoch else run.wanted
        candidates = [self._candidate(node, run) for node in self.registry if node.state != "revoked"]
        return choose(Demand(run.count, names, run.needs), candidates)

    def _candidate(self, node: Node, run: Run) -> Candidate:
        obstacle = "lost" if node.state == "lost" else "" if node.commands is not None else "not connected"
        if node.hello.own_runs_only and run.wanted != (node.name,):
            obstacle = obstacle or "takes only the runs that it opens itself"
        busy = "" if node.run == run.id else node.run
        return Candidate(node.name, frozenset(node.hello.data), busy, obstacle)

    async def assign(self, run: Run) -> None:
        """Return once the run's code is accepted and it has its nodes."""
        run.assigned.clear()
        await self.consent.obtain(run)
        self.schedule()
        await run.assigned.wait()

    # ---- what supervisors ask for ------------------------------------------------------------------------------

    def launch_parameters(self, run: Run) -> dict[str, Any]:
        """What the run process is told."""
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
            "nodes": list(run.nodes),
            "directory": str(run.directory),
            "data": data,
            "admitted": run.code.digest if run.code and self.consent.given(run) else "",
            "direct": direct,
            "sinks": list(self.options.sinks),
            "socket": str(self._sockets.socket(run.id, run.epoch)),
        }

    def start_program(self, run: Run, node: str, command: pb.StartProgram) -> bool:
        """Send a node its start command."""
        found = self.registry.get(node)
        if found is None or found.state != "connected":
            return False
        if not self.registry.command(found, pb.NodeCommand(start=command)):
            return False
        run.programs[node] = command.epoch
        return True

    def is_connected(self, node: str) -> bool:
        """Whether a node can be told to start a program."""
        found = self.registry.get(node)
        return found is not None and found.state == "connected" and found.commands is not None

    def stop_programs(self, run: Run, reason: str) -> None:
        """Stop the programs of the run's present epoch on all its nodes."""
        stop = pb.StopProgram(run_id=run.id, epoch=run.epoch, reason=reason)
        for name in run.nodes:
            if (node := self.registry.get(name)) is not None:
                self.registry.command(node, pb.NodeCommand(stop=stop))
        run.programs.clear()

    def open_door(self, ticket: str, run: Run, node: str, socket: Path) -> None:
        """Let whoever holds ``ticket`` through to the run process."""
        self.doors[ticket] = Route(run.id, node, socket)

    def close_doors(self, run: Run) -> None:
        """Forget the run's tickets."""
        for ticket in [t for t, door in self.doors.items() if door.run_id == run.id]:
            del self.doors[ticket]

    def data_dialled(self, run_id: str, node: str, port: int, peer: str) -> None:
        """A node's data connection came in at ``port`` from ``peer``."""
        self._counted.dialled(run_id, node, port, peer)

    def count_sockets(self, run: Run) -> None:
        """Write down what the data connections of the run's present epoch carried."""
        self._counted.write(run)

    def save(self, run: Run) -> None:
        """Store the run's state and tell followers."""
        self.book.save(run)

    # ---- what nodes say ----------------------------------------------------------------------------------------

    def node_connected(self, node: Node) -> None:
        """Compare what the node runs with what it should run, once its stream is open."""
        self.remember(node)
        running = {program.run_id: program.epoch for program in node.hello.running}
        for run_id, epoch in running.items():
            run = self.book.find(run_id)
            if run is None or run.programs.get(node.name) != epoch:
                stop = pb.StopProgram(run_id=run_id, epoch=epoch, reason="the server no longer runs this")
                self.registry.command(node, pb.NodeCommand(stop=stop))
        for run in self.book:
            epoch = run.programs.get(node.name, -1)
            if epoch >= 0 and running.get(run.id) != epoch:
                # The exit report may still be on its way, right behind the hello; it has the better reason.
                asyncio.get_running_loop().call_later(1.0, self._program_missing, run, node.name, epoch)
            elif epoch < 0 and node.run == run.id:
                run.inbox.put_nowait(Event("returned", node.name, run.epoch))

    def remember(self, node: Node) -> None:
        """Store when the node was last seen; a store that cannot be written costs that moment, not the node."""
        try:
            self.credentials.saw(node.name, node.seen_wall)
        except StorageError as error:
            _log.warning("when node %s was last seen is not stored: %s", node.name, error)

    def _program_missing(self, run: Run, node: str, epoch: int) -> None:
        if run.programs.get(node) == epoch:
            del run.programs[node]
            run.inbox.put_nowait(Event("lost", node, epoch, text="its agent came back without the program"))

    def node_lost(self, node: Node) -> None:
        """The node missed its heartbeats, left, or was revoked."""
        run = self.book.find(node.run) if node.run else None
        if run is not None and run.programs.pop(node.name, None) is not None:
            run.inbox.put_nowait(Event("lost", node.name, run.epoch, text=node.reason))

    def program_exited(self, node: Node, exited: pb.ProgramExited) -> None:
        """A node program ended; each (run, epoch) counts once."""
        run = self.book.find(exited.run_id)
        if run is None or run.programs.get(node.name) != exited.epoch:
            return
        del run.programs[node.name]
        details = {"traceback": exited.traceback}
        event = Event("exited", node.name, exited.epoch, exited.exit_code, exited.error, details)
        run.inbox.put_nowait(event)

    def log_lines(self, node: Node, lines: pb.LogLines) -> None:
        """Lines for a run's log; a node writes only to the log of the run it works for."""
        run = self.book.find(lines.run_id)
        if run is None or node.name not in run.nodes:
            raise RefusedError(f"node {node.name} does not work for the run '{lines.run_id[:40]}'")
        run.log.write(node.name, lines.lines)
        run.notify()

    def revoke_node(self, name: str) -> None:
        """Revoke a node's key and send the node away."""
        self.credentials.revoke_node(name)
        if (node := self.registry.revoke(name)) is not None:
            self.node_lost(node)


def _open_store(options: ServeOptions) -> RunStore:
    if options.store_url:
        return RunStore(options.store_url)
    path = options.home / "runs.sqlite"
    path.touch(mode=0o600)
    return RunStore(path)
