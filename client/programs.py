"""The node processes of one agent: start, monitor and stop them; at most one per run."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Protocol

from ..core.address import loopback_interface
from ..core.nodes import DEFAULT_ROLE
from ..core.processes import Child, Json
from ..proto import control_pb2 as pb
from .held_runs import prune
from .join import Membership
from .options import AgentOptions, AgentState
from .outbox import Outbox

_STOP_SECONDS = 2.0
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(slots=True)
class _Program:
    epoch: int
    child: Child | None = None
    failure: Json = field(default_factory=dict)
    stopping: bool = False
    task: asyncio.Task[None] | None = None


class CommandHandler(Protocol):
    """Handles the server's commands; every method is called in the agent's event loop."""

    @property
    def own_runs_only(self) -> bool:
        """Whether this node takes part only in runs that it opens itself."""

    def update_membership(self, member: Membership) -> None:
        """Use the key of a new membership."""

    def running_programs(self) -> list[pb.RunningProgram]:
        """List the running programs, for the hello message."""

    def start(self, command: pb.StartProgram) -> None:
        """Start a node program."""

    def stop(self, run_id: str, epoch: int, reason: str) -> None:
        """Stop the program of a run if its epoch is not newer than ``epoch``."""

    def run_opened(self, run_id: str) -> None:
        """The server has accepted the run that this node asked to open; the start command follows."""

    def run_refused(self, reason: str) -> None:
        """The server has refused the run that this node asked to open."""


class Programs:
    """A :class:`CommandHandler` that runs each node program in a process of its own.

    Parameters
    ----------
    options : AgentOptions
    member : Membership
    outbox : Outbox
        Receives the log lines and the exit event of every program.
    """

    def __init__(self, options: AgentOptions, member: Membership, outbox: Outbox) -> None:
        self._options = options
        self._member = member
        self._outbox = outbox
        self._programs: dict[str, _Program] = {}
        self._question = asyncio.Lock()  # one question at a time

    own_runs_only = False

    def run_opened(self, run_id: str) -> None:
        """Ignored: an agent opens no runs."""

    def run_refused(self, reason: str) -> None:
        """Ignored: an agent opens no runs."""

    def update_membership(self, member: Membership) -> None:
        """Use the key of a new membership."""
        self._member = member

    def running_programs(self) -> list[pb.RunningProgram]:
        """List the running programs, for the hello message."""
        return [pb.RunningProgram(run_id=r, epoch=p.epoch) for r, p in self._programs.items()]

    def start(self, command: pb.StartProgram) -> None:
        """Start a program, after stopping one of an older epoch; ignored if this epoch or a newer one is running."""
        old = self._programs.get(command.run_id)
        if old is not None and old.epoch >= command.epoch:
            return
        program = _Program(command.epoch)
        self._programs[command.run_id] = program
        program.task = asyncio.create_task(self._run(program, command, old), name=f"program {command.run_id}")

    def stop(self, run_id: str, epoch: int, reason: str) -> None:
        """Stop the program of a run if its epoch is not newer than ``epoch``."""
        program = self._programs.get(run_id)
        if program is not None and program.epoch <= epoch:
            self._stop(program)

    async def stop_all(self) -> None:
        """Stop all programs and wait until their processes have ended."""
        programs = list(self._programs.values())
        for program in programs:
            self._stop(program)
        await asyncio.gather(*(p.task for p in programs if p.task), return_exceptions=True)

    def _stop(self, program: _Program) -> None:
        program.stopping = True
        if program.child is not None:
            program.child.send({"type": "cancel"})
            _kill_after(program.child, _STOP_SECONDS)

    async def _run(self, program: _Program, command: pb.StartProgram, old: _Program | None) -> None:
        if old is not None and old.task is not None:
            self._stop(old)
            await asyncio.wait([old.task])
        code, error = 1, ""
        try:
            if not program.stopping:
                code = await self._execute(program, command)
        except OSError as reason:
            error = f"cannot start the node process: {reason.strerror}"
        finally:
            if self._programs.get(command.run_id) is program:
                del self._programs[command.run_id]
        failure = program.failure
        exited = pb.ProgramExited(
            run_id=command.run_id,
            epoch=command.epoch,
            exit_code=int(failure.get("exit_code", code)) if code > 0 else code,
            error=str(failure.get("error", error)),
            traceback=str(failure.get("traceback", "")),
        )
        self._outbox.put(pb.NodeEvent(exited=exited))
        self._report_state("program_exited", f"{command.run_id}: {_describe_exit(exited, stopped=program.stopping)}")

    async def _execute(self, program: _Program, command: pb.StartProgram) -> int:
        threads = self._options.profile.threads
        await self._make_room(command.run_id)
        environment = dict.fromkeys(_THREAD_VARIABLES, str(threads)) if threads else {}
        child = await Child.start("farshore.client.node_process", environment=environment)
        program.child = child
        child.send(launch_parameters(self._options, self._member, command))
        self._report_state("program_started", f"{command.run_id} ({command.workload}), process {child.pid}")
        if program.stopping:
            self._stop(program)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow(program, child, command.run_id))
            group.create_task(self._forward_output(child, command.run_id))
            return await child.wait()

    async def _make_room(self, run_id: str) -> None:
        runs, keep, running = self._options.home / "runs", self._options.keep_runs, set(self._programs)
        for name in await asyncio.to_thread(prune, runs, keep, running):
            self._outbox.line(run_id, f"the disk is almost full: deleted the checkpoints of the unfinished run {name}")

    async def _follow(self, program: _Program, child: Child, run_id: str) -> None:
        async for message in child.messages():
            if message.get("type") == "log":
                self._outbox.line(run_id, str(message.get("line", "")))
            elif message.get("type") == "failed":
                program.failure = message
            elif message.get("type") == "ask" and self._options.ask is not None:
                async with self._question:
                    accepted = await self._options.ask(str(message["what"]), str(message["digest"]))
                child.send({"type": "answer", "accepted": accepted})

    async def _forward_output(self, child: Child, run_id: str) -> None:
        async for line in child.output():
            self._outbox.line(run_id, line)

    def _report_state(self, state: AgentState, detail: str) -> None:
        if self._options.on_state is not None:
            self._options.on_state(state, detail)


def launch_parameters(options: AgentOptions, member: Membership, command: pb.StartProgram) -> Json:
    """Return the parameters of a node program's session: the start command, the node's options and its membership."""
    shard = options.shard or (command.shard_index, command.shard_count)
    host = options.address.rpartition(":")[0]
    return {
        "address": f"{host}:{command.data_port}" if command.data_port else options.address,
        "root": member.root.decode() if member.root is not None else None,
        "pinned": member.pinned,
        "ticket": command.ticket,
        "node": member.name,
        "home": str(options.home),
        "data": {name: str(path) for name, path in options.data.items()},
        "accept_apps": sorted(options.accept_apps),
        "ask": options.ask is not None,
        "peer_interface": options.peer_listen or loopback_interface(host),
        "shard": list(shard),
        "link": options.profile.link.model_dump(),
        "run": command.run_id,
        "workload": command.workload,
        "config": command.config_json,
        "seed": command.seed,
        "epoch": command.epoch,
        "nodes": list(command.nodes),
        "role": command.role or DEFAULT_ROLE,
    }


def _kill_after(child: Child, seconds: float) -> None:
    """Kill ``child`` after ``seconds`` if it is still running."""
    asyncio.get_running_loop().call_later(seconds, child.kill)


def _describe_exit(exited: pb.ProgramExited, *, stopped: bool) -> str:
    if exited.exit_code == 0:
        return "finished"
    if stopped:
        return "stopped"
    if exited.exit_code < 0:
        return f"killed by signal {-exited.exit_code}"
    return exited.error or f"ended with exit code {exited.exit_code}"
