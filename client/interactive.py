"""A node in the user's own process: opens a run and acts as its node program.

The control stream, heartbeats and the data connection run in named background threads while the user's code computes.
Never imports torch.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import ssl
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from ..core.errors import ExitCode, FarshoreError, PeerLostError, RefusedError, RunFailedError
from ..core.processes import Json
from ..proto import control_pb2 as pb
from ..wire.io import IoThread
from .agent import Agent
from .home import lock_home
from .join import Membership, Token, join, membership
from .options import AgentOptions, AgentState
from .programs import launch_parameters

if TYPE_CHECKING:
    from .node_session import NodeProcessSession

_log = logging.getLogger(__name__)

#: Seconds that the server has to start a run; it first ends an older run of this node.
_START_SECONDS = 90.0
#: Seconds that a broken control stream has to reconnect; the server waits about as long for a node.
PATIENCE_SECONDS = 15.0
_LEAVE_SECONDS = 5.0


class InteractiveNode:
    """The user's process as a node; connects on construction.

    Parameters
    ----------
    options : AgentOptions
        ``token`` is needed only the first time; ``on_state`` is not called.

    Raises
    ------
    RefusedError, VersionError, UnreachableError, StorageError
        As for :func:`farshore.client.agent.run`; there are no further attempts if the server does not answer.
    ConfigError
        Another process on this machine uses this node's home.
    """

    def __init__(self, options: AgentOptions) -> None:
        self._home_lock = lock_home(options)
        self._options = replace(options, on_state=self._on_state)
        try:
            self._member = _membership(self._options)
        except BaseException:
            self._home_lock.release()
            raise
        self._handler = _Handler(self)
        self._connected: Future[None] = Future()
        self._expiry: asyncio.TimerHandle | None = None
        self._connection: Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._io = IoThread("farshore-control").start()
        self._session: NodeProcessSession | None = None
        self.lost: FarshoreError | None = None
        try:
            self._agent = Agent(self._options)
            self._connection = self._io.submit(self._run_control())
            self._connected.result(_START_SECONDS)
        except BaseException:
            self.close()
            raise

    def open(self, workload: str, config_json: str, seed: int | None = None) -> NodeProcessSession:
        """Open a run of ``workload`` with this node alone; returns its session after the handshake.

        Parameters
        ----------
        workload : str
            Name of a method whose runs nodes may open.
        config_json : str
        seed : int, optional
            Root of the seed tree; by default, the server draws one.

        Raises
        ------
        RefusedError
            The server refuses the run.
        RunFailedError, PeerLostError
            The run failed at its start, or the server was lost.
        """
        from .node_session import NodeProcessSession

        request = pb.OpenRun(workload=workload, config_json=config_json, seed=seed)
        started = self._handler.expect()
        self._io.loop.call_soon_threadsafe(self._agent.outbox.put, pb.NodeEvent(open=request))
        try:
            command = started.result(_START_SECONDS)
        except TimeoutError:
            raise RunFailedError(
                f"the server did not start the run within {_START_SECONDS:.0f} s", hint="see 'farshore runs ls' there"
            ) from None
        session = NodeProcessSession(launch_parameters(self._options, self._member, command), self._handler)
        self._session = session
        session.__enter__()
        self._handler.attach(session)
        session.handshake()
        return session

    def close(self) -> None:
        """Close the session and leave the server; idempotent."""
        session, self._session = self._session, None
        if session is not None:
            # A broken channel cannot deliver what was sent, so it is closed without waiting.
            error = self.lost or session.channel.inbox.error
            session.__exit__(type(error) if error else None, error, None)
            if error is None:
                exited = pb.ProgramExited(run_id=session.run.id, epoch=session.run.epoch)
                self._io.loop.call_soon_threadsafe(self._agent.outbox.put, pb.NodeEvent(exited=exited))
        if self._connection is not None:
            with suppress(TimeoutError):
                self._io.call(self._leave(), _LEAVE_SECONDS)
            self._connection = None
        self._io.stop()
        self._home_lock.release()

    # ---- in the control thread -----------------------------------------------------------------------------------

    async def _run_control(self) -> None:
        self._task = asyncio.current_task()
        try:
            await self._agent.keep_connected(self._member, self._handler)
        except FarshoreError as error:
            self._fail(error)
        except Exception as error:
            _log.exception("the control stream of node %s failed", self._options.name)
            self._fail(PeerLostError(f"the control stream failed: {type(error).__name__}: {error}"))

    async def _leave(self) -> None:
        if self._task is not None:
            await self._agent.leave(self._task)

    def _on_state(self, state: AgentState, detail: str) -> None:
        if state == "connected":
            if self._expiry is not None:
                self._expiry.cancel()
                self._expiry = None
            if not self._connected.done():
                self._connected.set_result(None)
        elif state == "disconnected":
            reason = f"lost the server at {self._options.address}: {detail}"
            error = PeerLostError(reason, hint="check that it is running; the run's state on the server is lost")
            if not self._connected.done():
                self._fail(error)
            elif self._expiry is None:
                self._expiry = asyncio.get_running_loop().call_later(PATIENCE_SECONDS, self._fail, error)

    def _fail(self, error: FarshoreError) -> None:
        self.lost = self.lost or error
        if not self._connected.done():
            self._connected.set_exception(error)
        self._handler.fail(error)


class _Handler:
    """Implements ``CommandHandler`` for the agent of an interactive node and ``SessionHost`` for its session."""

    own_runs_only = True

    def __init__(self, node: InteractiveNode) -> None:
        self._node = node
        self._start_command: Future[pb.StartProgram] = Future()
        self._run_id = ""
        self._command: pb.StartProgram | None = None
        self._session: NodeProcessSession | None = None
        self._error: FarshoreError | None = None

    def expect(self) -> Future[pb.StartProgram]:
        """Return a future that receives the next start command."""
        self._start_command = Future()
        if self._error is not None:
            self._start_command.set_exception(self._error)
        return self._start_command

    def attach(self, session: NodeProcessSession) -> None:
        """Fail the channel of ``session`` when the run fails."""
        self._session = session
        if self._error is not None:
            session.channel.fail(self._error)

    def fail(self, error: FarshoreError) -> None:
        """End the run in this process: the pending start and the session's channel fail with ``error``."""
        self._error = self._error or error
        if not self._start_command.done():
            self._start_command.set_exception(error)
        if self._session is not None:
            self._session.channel.fail(error)

    # ---- CommandHandler ----

    def update_membership(self, member: Membership) -> None:
        self._node._member = member

    def running_programs(self) -> list[pb.RunningProgram]:
        command = self._command
        return [pb.RunningProgram(run_id=command.run_id, epoch=command.epoch)] if command and not self._error else []

    def run_opened(self, run_id: str) -> None:
        self._run_id = run_id

    def start(self, command: pb.StartProgram) -> None:
        if self._command is None and command.run_id == self._run_id and not self._start_command.done():
            self._command = command
            self._start_command.set_result(command)
            return
        # A run that was submitted for this node by name.
        error = f"the node '{self._node._options.name}' is a user's process and runs only what it opens itself"
        exited = pb.ProgramExited(
            run_id=command.run_id, epoch=command.epoch, exit_code=int(ExitCode.REFUSED), error=error
        )
        self._node._agent.outbox.put(pb.NodeEvent(exited=exited))

    def stop(self, run_id: str, epoch: int, reason: str) -> None:
        if run_id == self._run_id:  # else: a run of an earlier process with this node's name
            self.fail(RunFailedError(f"run {run_id} has ended: {reason}"))

    def run_refused(self, reason: str) -> None:
        self.fail(RefusedError(f"the server refused to open the run: {reason}"))

    # ---- SessionHost ----

    def listen(self, on_message: Callable[[Json], None]) -> None:
        """Ignore: :meth:`fail` fails the session's channel directly."""

    def send(self, message: Json) -> None:
        if message.get("type") == "log" and self._command is not None:
            line = self._node._agent.outbox.line
            self._node._io.loop.call_soon_threadsafe(line, self._command.run_id, str(message.get("line", "")))


def _membership(options: AgentOptions) -> Membership:
    """Load the stored membership, or join if the token belongs to another server."""
    member = membership(options)
    if options.token and member.pinned and member.root is not None:
        expected = Token.parse(options.token).fingerprint
        found = hashlib.sha256(ssl.PEM_cert_to_DER_cert(member.root.decode())).hexdigest()
        if expected and expected != found:
            return join(options)
    return member
