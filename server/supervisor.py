"""Supervises one run from waiting to its end; each restart epoch has one run process and one program per node.

A restart epoch ends when the run's programs have finished, when one of them has failed, or when one has been lost
(killed, or its node disconnected). In the last case all programs are stopped, and the next epoch resumes from their
newest common checkpoint once all nodes are connected. If the method continues without lost nodes, only the lost
program is restarted (see :mod:`farshore.server.rejoin_policy`).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from ..core.bounds import MAX_ERROR, MAX_RESULT, bounded_values, cut, cut_json
from ..core.errors import ExitCode, RefusedError
from ..core.processes import Child
from ..proto import control_pb2 as pb
from ..runs.states import RunState
from .rejoin_policy import RejoinPolicy
from .restart_limit import RestartLimit
from .run import Event, Run
from .supervisor_host import SupervisorHost

_log = logging.getLogger(__name__)

#: Seconds that a run process has to write its ledger and end.
STOP_SECONDS = 3.0
#: Seconds that node programs have to end after the server program has finished.
NODE_SECONDS = 10.0
#: Seconds to wait for a node's own error report when the server program has failed with ``PeerLostError``.
VERDICT_SECONDS = 2.0

#: Events of nodes; events of run processes are ignored outside their own epoch.
_NODE_EVENTS = ("lost", "exited", "returned", "joining", "revoked")
#: Exit codes of node programs that would fail again after a restart.
_PERMANENT = (
    ExitCode.CONFIG,
    ExitCode.DATA,
    ExitCode.MISSING_EXTRA,
    ExitCode.REFUSED,
    ExitCode.VERSION,
    ExitCode.NOT_FOUND,
)

#: Largest count of steps or rounds.
_MAX_COUNT = (1 << 63) - 1

#: Nodes by ticket.
Tickets: TypeAlias = dict[str, str]
Verdict: TypeAlias = Literal["finished", "failed", "cancelled", "interrupted", "restart"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a restart epoch ended, and why."""

    verdict: Verdict
    reason: str = ""
    result: str = ""


class Supervisor:
    """Supervises one run.

    Parameters
    ----------
    run : Run
    host : SupervisorHost
    restarts_per_hour : int
    clock : callable
        Returns monotonic seconds; replaceable in tests.
    """

    def __init__(
        self,
        run: Run,
        host: SupervisorHost,
        restarts_per_hour: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run = run
        self._host = host
        self._limit = RestartLimit(restarts_per_hour, clock)
        self._restartable = True
        self._direct_port = 0
        self._socket = Path()
        self._process_epoch = 0  # epoch in which the run process was started
        self._rejoin_policy = RejoinPolicy(run, host, self._limit)

    async def supervise(self) -> None:
        """Run restart epochs until the run has ended, or until ``run.end_request`` is set."""
        run = self._run
        try:
            while True:
                outcome = await self._wait_for_nodes() or await self._run_epoch()
                if outcome.verdict == "restart" and run.no_restart:
                    outcome = Outcome("failed", outcome.reason)
                if outcome.verdict == "restart" and not self._limit.allows(run.restarts):
                    outcome = Outcome(
                        "failed", f"{outcome.reason}; restarted {self._limit.per_hour} times within an hour"
                    )
                if outcome.verdict != "restart":
                    break
                run.log.write("server", [f"{outcome.reason}: restarting as epoch {run.epoch + 1}"])
                run.epoch += 1
                self._set_state("waiting", outcome.reason)
        except Exception as error:
            _log.exception("run %s: its supervisor failed", run.id)
            outcome = Outcome("failed", f"internal error: {type(error).__name__}: {error}")
        self._finish(outcome)

    async def _wait_for_nodes(self) -> Outcome | None:
        run, loop = self._run, asyncio.get_running_loop()
        assigning = asyncio.create_task(self._host.assign(run), name=f"assign {run.id}")
        deadline = loop.time() + run.wait_seconds if run.wait_seconds else None
        try:
            while run.end_request is None:
                getting = asyncio.create_task(run.inbox.get())
                left = None if deadline is None else max(0.0, deadline - loop.time())
                try:
                    await asyncio.wait([assigning, getting], timeout=left, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    if not getting.done():
                        getting.cancel()
                if assigning.done():
                    try:
                        assigning.result()
                    except RefusedError as error:
                        return Outcome("failed", str(error))
                    return None
                if left == 0:
                    return Outcome("failed", f"no nodes within {run.wait_seconds:g} s: {run.reason}")
            return Outcome(*run.end_request)
        finally:
            assigning.cancel()

    # ---- one epoch ---------------------------------------------------------------------------------------------

    async def _run_epoch(self) -> Outcome:
        run = self._run
        while not run.inbox.empty():  # discard events of the previous epoch
            run.inbox.get_nowait()
        self._restartable, self._process_epoch = True, run.epoch
        self._rejoin_policy.reset()
        self._set_state("starting", "starting the run process")
        child = await Child.start("farshore.server.run_process")
        tickets = {secrets.token_urlsafe(24): node for node in run.nodes}
        parameters = self._host.launch_parameters(run)
        child.send({**parameters, "tickets": {node: ticket for ticket, node in tickets.items()}})
        self._socket = Path(parameters["socket"])
        tasks = [
            asyncio.create_task(self._follow(child, run.epoch), name=f"run process {run.id}"),
            asyncio.create_task(self._forward_output(child), name=f"output {run.id}"),
        ]
        try:
            outcome = await self._watch(child, tickets)
            if outcome.verdict != "finished":
                self._host.stop_programs(run, outcome.reason)
                child.send({"type": "cancel", "reason": outcome.reason})
            await child.stop(STOP_SECONDS, first=None)
            if outcome.verdict == "finished":
                await self._wait_for_node_programs()
            return outcome
        finally:
            self._host.remove_routes(run)
            self._host.write_socket_counts(run)
            child.kill()
            await asyncio.wait(tasks, timeout=1)
            for task in tasks:
                task.cancel()

    async def _follow(self, child: Child, epoch: int) -> None:
        run = self._run
        async for message in child.messages():
            kind = str(message.pop("type", ""))
            if kind == "log":
                run.log.write("run", [str(message.get("line", ""))])
                run.notify()
                await asyncio.sleep(0)  # a program that logs in a tight loop must not occupy the event loop
            elif kind == "progress":
                run.done, run.total = (min(max(0, int(message[n])), _MAX_COUNT) for n in ("done", "total"))
                run.progress = bounded_values(message["values"])
                run.notify()
            else:
                run.inbox.put_nowait(Event(kind, epoch=epoch, details=message))
        run.inbox.put_nowait(Event("gone", epoch=epoch))

    async def _forward_output(self, child: Child) -> None:
        async for lines in child.output_lines():
            self._run.log.write("run", lines)
            self._run.notify()

    async def _watch(self, child: Child, tickets: Tickets) -> Outcome:
        """Handle events until the outcome of the epoch is known."""
        run = self._run
        while True:
            if run.end_request is not None:
                return Outcome(*run.end_request)
            event = await run.inbox.get()
            if event.epoch != self._process_epoch and event.kind not in _NODE_EVENTS:
                continue
            outcome = await self._handle(event, child, tickets)
            if outcome is not None:
                return outcome

    async def _handle(self, event: Event, child: Child, tickets: Tickets) -> Outcome | None:
        run = self._run
        match event.kind:
            case "ready":
                return self._start_nodes(event, child, tickets)
            case "running":
                run.resume_from = None  # restarts from here on continue from the newest common step
                self._set_state("running", "")
            case "dialled":
                self._host.data_connected(run.id, str(event.details["node"]), self._direct_port, event.details["peer"])
            case "waiting":
                run.reason = cut(str(event.details.get("reason", "")), MAX_ERROR)
                run.notify()
            case "finished":
                result = str(event.details["result"])
                where = "result.json in the run's directory"
                return Outcome("finished", result=await asyncio.to_thread(cut_json, result, MAX_RESULT, where))
            case "failed":
                return await self._diagnose_failure(event)
            case "gone":
                return Outcome("restart", f"the run process {_describe_exit(await child.wait())}")
            case "exited":
                return self._program_ended(event, child)
            case "lost":
                return self._node_lost(event.node, f"node {event.node}: {event.text}", child)
            case "returned" if not self._restartable:
                self._rejoin_policy.request_restart(event.node, child)
            case "joining" if not self._restartable:
                run.log.write("server", [f"node {event.node} joins the run"])
                self._rejoin_policy.request_restart(event.node, child)
            case "revoked":
                child.send({"type": "revoke", "node": event.node})
            case "expecting":
                self._rejoin_policy.start_program(event, child, self._start_program)
            case "unfit":
                self._rejoin_policy.exclude(str(event.details["node"]), str(event.details["reason"]), child)
        return None

    def _start_nodes(self, event: Event, child: Child, tickets: Tickets) -> Outcome | None:
        self._direct_port = int(event.details["port"])
        self._restartable = event.details["on_lost_node"] == "restart"
        for ticket, node in tickets.items():
            if not self._start_program(node, ticket, event.epoch):
                outcome = self._node_lost(node, f"node {node} disconnected before its program could start", child)
                if outcome is not None:
                    return outcome
        self._set_state("starting", "waiting for the node programs")
        return None

    def _start_program(self, node: str, ticket: str, epoch: int) -> bool:
        run = self._run
        info = self._host.node_info(run, node)
        self._host.add_route(ticket, run, node, self._socket)
        command = pb.StartProgram(
            run_id=run.id,
            workload=run.workload,
            config_json=run.config_json,
            seed=run.seed,
            epoch=epoch,
            nodes=run.nodes,
            ticket=ticket,
            data_port=self._direct_port,
            shard_index=info.shard[0],
            shard_count=info.shard[1],
            role=info.role,
        )
        return self._host.start_program(run, node, command)

    async def _diagnose_failure(self, event: Event) -> Outcome:
        """Decide the outcome after the server program raised; after ``PeerLostError``, prefer the node's own error."""
        details = event.details
        if int(details["exit_code"]) != ExitCode.PEER_LOST:
            self._run.record_failure("run", str(details["error"]), str(details["traceback"]))
            return Outcome("failed", f"server program{self._progress_note}: {details['error']}")
        try:
            async with asyncio.timeout(VERDICT_SECONDS):
                while True:
                    other = await self._run.inbox.get()
                    if other.kind == "exited" and other.code:
                        if (outcome := self._program_ended(other, None)) is not None:
                            return outcome
                    elif other.kind == "lost":
                        return Outcome("restart", f"node {other.node}: {other.text}")
        except TimeoutError:
            if self._restartable:
                return Outcome("restart", str(details["error"]))
            return Outcome("failed", f"server program{self._progress_note}: {details['error']}")

    @property
    def _progress_note(self) -> str:
        """The run's progress, for error messages; empty before the first step or round."""
        run = self._run
        return f", after {run.progress.get('unit', 'step')} {run.done} of {run.total}" if run.done else ""

    def _program_ended(self, event: Event, child: Child | None) -> Outcome | None:
        if event.code == 0:
            # The server program must not wait for messages of a program that has finished.
            if child is not None:
                child.send({"type": "lost", "node": event.node, "reason": f"node {event.node}: its program has ended"})
            return None
        if event.code < 0 or event.code == ExitCode.PEER_LOST:
            how = f"ended: {event.text}" if event.text else _describe_exit(event.code)
            return self._node_lost(event.node, f"node {event.node}: its program {how}", child)
        reason = f"node {event.node}{self._progress_note}: {event.text or _describe_exit(event.code)}"
        self._run.record_failure(
            event.node, event.text or _describe_exit(event.code), str(event.details.get("traceback", ""))
        )
        if self._restartable:
            return Outcome("failed", reason)
        permanent = self._rejoin_policy.fails_repeatedly(event.node, event.text) or event.code in _PERMANENT
        if permanent and child is not None:
            self._rejoin_policy.exclude(event.node, reason, child)
            return None
        return self._node_lost(event.node, reason, child)

    def _node_lost(self, node: str, reason: str, child: Child | None) -> Outcome | None:
        if self._restartable or child is None:
            return Outcome("restart", reason)
        self._run.log.write("server", [f"{reason}; continuing without it"])
        child.send({"type": "lost", "node": node, "reason": reason})
        self._rejoin_policy.request_restart(node, child)
        return None

    async def _wait_for_node_programs(self) -> None:
        """Wait for the node programs to end; stop those that do not within ``NODE_SECONDS``."""
        run = self._run
        try:
            async with asyncio.timeout(NODE_SECONDS):
                while run.programs:
                    await run.inbox.get()
        except TimeoutError:
            late = ", ".join(run.programs)
            run.log.write("server", [f"stopping the programs of {late}, which did not end within {NODE_SECONDS:.0f} s"])
            self._host.stop_programs(run, "the run has finished")

    # ---- states ------------------------------------------------------------------------------------------------

    def _finish(self, outcome: Outcome) -> None:
        run = self._run
        run.ended = time.time()
        run.result_json = outcome.result or run.result_json
        assert outcome.verdict != "restart"
        run.log.write("server", [f"{outcome.verdict}{': ' if outcome.reason else ''}{outcome.reason}"])
        self._set_state(outcome.verdict, outcome.reason)

    def _set_state(self, state: RunState, reason: str) -> None:
        run = self._run
        if state == "running" and not run.started:
            run.started = time.time()
        run.state, run.reason = state, cut(reason, MAX_ERROR)
        _log.info("run %s: %s%s", run.id, state, f" ({run.reason})" if reason else "")
        self._host.save(run)


def _describe_exit(code: int) -> str:
    return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
