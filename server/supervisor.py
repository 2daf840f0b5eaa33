"""Leads one run from waiting to its end: one run process and one program per node for each epoch.

An epoch ends when the run's programs have finished, when one of them failed, or when one of them died. In the last
case all of them are stopped and the next epoch begins at their highest common checkpoint, as soon as all nodes are
there again. Where a method goes on without a lost node, that node's program alone is started again, when it can be.
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

from ..core.errors import ExitCode, RefusedError
from ..core.processes import Child
from ..proto import control_pb2 as pb
from ..runs.states import RunState
from .rejoin_policy import RejoinPolicy
from .restart_limit import RestartLimit
from .run import Event, Run
from .supervisor_host import SupervisorHost

_log = logging.getLogger(__name__)

#: Seconds that a run process gets to write its ledger and go.
STOP_SECONDS = 3.0
#: Seconds that node programs get to end by themselves after the server program has.
NODE_SECONDS = 10.0
#: Seconds to wait for a node's own account when the server program ended because a peer was gone.
VERDICT_SECONDS = 2.0

#: Events of nodes; those of run processes count only in their own epoch.
_OF_NODES = ("lost", "exited", "returned")
#: Exit codes of node programs that would end in the same way once more.
_FOR_GOOD = (
    ExitCode.CONFIG,
    ExitCode.DATA,
    ExitCode.MISSING_EXTRA,
    ExitCode.REFUSED,
    ExitCode.VERSION,
    ExitCode.NOT_FOUND,
)

#: Ticket -> the node it is for.
Tickets: TypeAlias = dict[str, str]
Verdict: TypeAlias = Literal["finished", "failed", "cancelled", "interrupted", "restart"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an epoch ended, and why."""

    verdict: Verdict
    reason: str = ""
    result: str = ""


class Supervisor:
    """Leads one run.

    Parameters
    ----------
    run : Run
    surroundings : Surroundings
    restarts_per_hour : int
    clock : callable
        Monotonic seconds; for tests.
    """

    def __init__(
        self,
        run: Run,
        surroundings: SupervisorHost,
        restarts_per_hour: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run = run
        self._around = surroundings
        self._limit = RestartLimit(restarts_per_hour, clock)
        self._restartable = True
        self._direct_port = 0
        self._socket = Path()
        self._begun = 0  # the epoch of the run process
        self._comebacks = RejoinPolicy(run, surroundings, self._limit)

    async def lead(self) -> None:
        """Take the run to its end, or to the early one that ``run.ending`` asks for."""
        run = self._run
        try:
            while True:
                outcome = await self._wait_for_nodes() or await self._epoch()
                if outcome.verdict == "restart" and run.one_epoch:
                    outcome = Outcome("failed", outcome.reason)
                if outcome.verdict == "restart" and not self._limit.allows(run.restarts):
                    outcome = Outcome(
                        "failed", f"{outcome.reason}; restarted {self._limit.per_hour} times within an hour"
                    )
                if outcome.verdict != "restart":
                    break
                run.log.write("server", [f"{outcome.reason}: starting again as epoch {run.epoch + 1}"])
                run.epoch += 1
                self._set("waiting", outcome.reason)
        except Exception as error:
            _log.exception("run %s: its supervisor failed", run.id)
            outcome = Outcome("failed", f"internal error: {type(error).__name__}: {error}")
        self._end(outcome)

    async def _wait_for_nodes(self) -> Outcome | None:
        run = self._run
        assigning = asyncio.create_task(self._around.assign(run), name=f"assign {run.id}")
        try:
            while run.ending is None:
                getting = asyncio.create_task(run.inbox.get())
                try:
                    await asyncio.wait([assigning, getting], return_when=asyncio.FIRST_COMPLETED)
                finally:
                    if not getting.done():
                        getting.cancel()
                if assigning.done():
                    try:
                        assigning.result()
                    except RefusedError as error:
                        return Outcome("failed", str(error))
                    return None
            return Outcome(*run.ending)
        finally:
            assigning.cancel()

    # ---- one epoch ---------------------------------------------------------------------------------------------

    async def _epoch(self) -> Outcome:
        run = self._run
        while not run.inbox.empty():  # what is left of the epoch before
            run.inbox.get_nowait()
        self._restartable, self._begun = True, run.epoch
        self._comebacks.forget()
        self._set("starting", "starting the run process")
        child = await Child.start("farshore.server.run_process")
        tickets = {secrets.token_urlsafe(24): node for node in run.nodes}
        parameters = self._around.launch_parameters(run)
        child.send({**parameters, "tickets": {node: ticket for ticket, node in tickets.items()}})
        self._socket = Path(parameters["socket"])
        jobs = [
            asyncio.create_task(self._follow(child, run.epoch), name=f"run process {run.id}"),
            asyncio.create_task(self._forward_output(child), name=f"output {run.id}"),
        ]
        try:
            outcome = await self._watch(child, tickets)
            if outcome.verdict != "finished":
                self._around.stop_programs(run, outcome.reason)
                child.send({"type": "cancel", "reason": outcome.reason})
            await child.stop(STOP_SECONDS, first=None)
            if outcome.verdict == "finished":
                await self._let_nodes_end()
            return outcome
        finally:
            self._around.close_doors(run)
            self._around.count_sockets(run)
            child.kill()
            await asyncio.wait(jobs, timeout=1)
            for job in jobs:
                job.cancel()

    async def _follow(self, child: Child, epoch: int) -> None:
        run = self._run
        async for message in child.messages():
            kind = str(message.pop("type", ""))
            if kind == "log":
                run.log.write("run", [str(message.get("line", ""))])
                run.notify()
            elif kind == "progress":
                run.done, run.total = int(message["done"]), int(message["total"])
                run.progress = dict(message["values"])
                run.notify()
            else:
                run.inbox.put_nowait(Event(kind, epoch=epoch, details=message))
        run.inbox.put_nowait(Event("gone", epoch=epoch))

    async def _forward_output(self, child: Child) -> None:
        async for line in child.output():
            self._run.log.write("run", [line])
            self._run.notify()

    async def _watch(self, child: Child, tickets: Tickets) -> Outcome:
        """Look at what happens until the epoch is decided."""
        run = self._run
        while True:
            if run.ending is not None:
                return Outcome(*run.ending)
            event = await run.inbox.get()
            if event.epoch != self._begun and event.kind not in _OF_NODES:
                continue
            outcome = await self._consider(event, child, tickets)
            if outcome is not None:
                return outcome

    async def _consider(self, event: Event, child: Child, tickets: Tickets) -> Outcome | None:
        run = self._run
        match event.kind:
            case "ready":
                return self._start_nodes(event, child, tickets)
            case "running":
                self._set("running", "")
            case "dialled":
                self._around.data_dialled(run.id, str(event.details["node"]), self._direct_port, event.details["peer"])
            case "waiting":
                run.reason = str(event.details.get("reason", ""))
                run.notify()
            case "finished":
                return Outcome("finished", result=str(event.details["result"]))
            case "failed":
                return await self._why_failed(event)
            case "gone":
                return Outcome("restart", f"the run process {_ending(await child.wait())}")
            case "exited":
                return self._program_ended(event, child)
            case "lost":
                return self._node_lost(event.node, f"node {event.node}: {event.text}", child)
            case "returned" if not self._restartable:
                self._comebacks.bring_back(event.node, child)
            case "expecting":
                self._comebacks.start_again(event, child, self._start_program)
            case "unfit":
                self._comebacks.keep_out(str(event.details["node"]), str(event.details["reason"]), child)
        return None

    def _start_nodes(self, event: Event, child: Child, tickets: Tickets) -> Outcome | None:
        self._direct_port = int(event.details["port"])
        self._restartable = event.details["on_lost_node"] == "restart"
        for ticket, node in tickets.items():
            if not self._start_program(node, ticket, event.epoch):
                outcome = self._node_lost(node, f"node {node} went away before it could start", child)
                if outcome is not None:
                    return outcome
        self._set("starting", "waiting for the nodes' programs")
        return None

    def _start_program(self, node: str, ticket: str, epoch: int) -> bool:
        run = self._run
        self._around.open_door(ticket, run, node, self._socket)
        command = pb.StartProgram(
            run_id=run.id,
            workload=run.workload,
            config_json=run.config_json,
            seed=run.seed,
            epoch=epoch,
            nodes=run.nodes,
            ticket=ticket,
            data_port=self._direct_port,
            shard_index=run.nodes.index(node),
            shard_count=len(run.nodes),
        )
        return self._around.start_program(run, node, command)

    async def _why_failed(self, event: Event) -> Outcome:
        """The server program raised. If it lost a peer, that node knows better what happened."""
        details = event.details
        if int(details["exit_code"]) != ExitCode.PEER_LOST:
            self._run.blame("run", str(details["error"]), str(details["traceback"]))
            return Outcome("failed", f"server program{self._so_far}: {details['error']}")
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
            return Outcome("failed", f"server program{self._so_far}: {details['error']}")

    @property
    def _so_far(self) -> str:
        """How far the run was, for whoever asks in which round something failed; nothing before the first."""
        run = self._run
        return f", after {run.progress.get('unit', 'step')} {run.done} of {run.total}" if run.done else ""

    def _program_ended(self, event: Event, child: Child | None) -> Outcome | None:
        if event.code == 0:
            # It took and sent all it wanted; whoever still waits for it must not wait for ever.
            if child is not None:
                child.send({"type": "lost", "node": event.node, "reason": f"node {event.node}: its program has ended"})
            return None
        if event.code < 0 or event.code == ExitCode.PEER_LOST:
            how = f"ended: {event.text}" if event.text else _ending(event.code)
            return self._node_lost(event.node, f"node {event.node}: its program {how}", child)
        reason = f"node {event.node}{self._so_far}: {event.text or _ending(event.code)}"
        self._run.blame(event.node, event.text or _ending(event.code), str(event.details.get("traceback", "")))
        if self._restartable:
            return Outcome("failed", reason)
        broken = self._comebacks.is_broken(event.node, event.text) or event.code in _FOR_GOOD
        if broken and child is not None:
            self._comebacks.keep_out(event.node, reason, child)
            return None
        return self._node_lost(event.node, reason, child)

    def _node_lost(self, node: str, reason: str, child: Child | None) -> Outcome | None:
        if self._restartable or child is None:
            return Outcome("restart", reason)
        self._run.log.write("server", [f"{reason}; going on without it"])
        child.send({"type": "lost", "node": node, "reason": reason})
        self._comebacks.bring_back(node, child)
        return None

    async def _let_nodes_end(self) -> None:
        """Node programs end by themselves; whoever does not in time is stopped."""
        run = self._run
        try:
            async with asyncio.timeout(NODE_SECONDS):
                while run.programs:
                    await run.inbox.get()
        except TimeoutError:
            late = ", ".join(run.programs)
            run.log.write("server", [f"the programs of {late} did not end by themselves: stopping them"])
            self._around.stop_programs(run, "the run has finished")

    # ---- states ------------------------------------------------------------------------------------------------

    def _end(self, outcome: Outcome) -> None:
        run = self._run
        run.ended = time.time()
        run.result_json = outcome.result or run.result_json
        assert outcome.verdict != "restart"
        run.log.write("server", [f"{outcome.verdict}{': ' if outcome.reason else ''}{outcome.reason}"])
        self._set(outcome.verdict, outcome.reason)

    def _set(self, state: RunState, reason: str) -> None:
        run = self._run
        if state == "running" and not run.started:
            run.started = time.time()
        run.state, run.reason = state, reason
        _log.info("run %s: %s%s", run.id, state, f" ({reason})" if reason else "")
        self._around.save(run)


def _ending(code: int) -> str:
    return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
