"""A node inside a user's own process: it opens a run for itself and is that run's node program.

What must go on while the user's code computes – the control stream, heartbeats, the data connection – lives in named
background threads. Never imports torch.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import logging
import os
import ssl
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from ..core.errors import ConfigError, ExitCode, FarshoreError, PeerLostError, RefusedError, RunFailedError
from ..core.files import private_folder
from ..core.processes import Json
from ..proto import control_pb2 as pb
from ..wire.io import IoThread
from .agent import Agent
from .join import Membership, Token, join, membership
from .options import AgentOptions, State
from .programs import specification

if TYPE_CHECKING:
    from .node_session import NodeProcessSession

_log = logging.getLogger(__name__)

#: Seconds that the server gets to start a run, an older one of this node's ended first.
_START_SECONDS = 90.0
#: Seconds that a broken control stream may take to come back; the server gives a node about as long.
PATIENCE_SECONDS = 15.0
_LEAVE_SECONDS = 5.0


class InteractiveNode:
    """A user's process as a node.

    Parameters
    ----------
    options : AgentOptions
        ``token`` is needed the first time only; ``on_state`` is not called.

    Raises
    ------
    RefusedError, VersionError, UnreachableError, StorageError
        As for :func:`farshore.client.agent.run`; whoever does not answer now is not waited for.
    ConfigError
        Another process of this machine is this node at the moment.
    """

    def __init__(self, options: AgentOptions) -> None:
        self._home_lock = _lock_home(options)
        self._options = replace(options, on_state=self._on_state)
        self._member = _membership(self._options)
        self._hosted = _Hosted(self)
        self._connected: Future[None] = Future()
        self._expiry: asyncio.TimerHandle | None = None
        self._staying: Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._io = IoThread("farshore-control").start()
        self._session: NodeProcessSession | None = None
        self.lost: FarshoreError | None = None
        try:
            self._agent = Agent(self._options)
            self._staying = self._io.submit(self._stay())
            self._connected.result(_START_SECONDS)
        except BaseException:
            self.close()
            raise

    def open(self, workload: str, config_json: str, seed: int | None = None) -> NodeProcessSession:
        """Open a run of ``workload`` with this node alone; returns its session, ready to talk.

        Parameters
        ----------
        workload : str
            A method that nodes may open.
        config_json : str
        seed : int, optional
            Root of the seed tree; the server draws one where it is left out.

        Raises
        ------
        RefusedError
            The server does not grant it.
        RunFailedError, PeerLostError
            It failed at once, or the server went away.
        """
        from .node_session import NodeProcessSession

        request = pb.OpenRun(workload=workload, config_json=config_json, seed=seed)
        started = self._hosted.expect()
        self._io.loop.call_soon_threadsafe(self._agent.outbox.put, pb.NodeEvent(open=request))
        try:
            command = started.result(_START_SECONDS)
        except TimeoutError:
            raise RunFailedError(
                f"the server did not start the run within {_START_SECONDS:.0f} s", hint="see 'farshore runs ls' there"
            ) from None
        session = NodeProcessSession(specification(self._options, self._member, command), self._hosted)
        self._session = session
        session.__enter__()
        self._hosted.attach(session)
        session.agree()
        return session

    def close(self) -> None:
        """End the session in good order and leave the server; idempotent."""
        session, self._session = self._session, None
        if session is not None:
            # A broken conversation has nothing left to wait for.
            broken = self.lost or session.channel.inbox.error
            session.__exit__(type(broken) if broken else None, broken, None)
            if broken is None:
                exited = pb.ProgramExited(run_id=session.run.id, epoch=session.run.epoch)
                self._io.loop.call_soon_threadsafe(self._agent.outbox.put, pb.NodeEvent(exited=exited))
        if self._staying is not None:
            with suppress(TimeoutError):
                self._io.call(self._leave(), _LEAVE_SECONDS)
            self._staying = None
        self._io.stop()
        if self._home_lock >= 0:
            os.close(self._home_lock)
            self._home_lock = -1

    # ---- in the control thread -----------------------------------------------------------------------------------

    async def _stay(self) -> None:
        self._task = asyncio.current_task()
        try:
            await self._agent.stay_connected(self._member, self._hosted)
        except FarshoreError as error:
            self._lose(error)
        except Exception as error:
            _log.exception("the control stream of node %s failed", self._options.name)
            self._lose(PeerLostError(f"the control stream failed: {type(error).__name__}: {error}"))

    async def _leave(self) -> None:
        if self._task is not None:
            await self._agent.leave(self._task)

    def _on_state(self, state: State, detail: str) -> None:
        if state == "connected":
            if self._expiry is not None:
                self._expiry.cancel()
                self._expiry = None
            if not self._connected.done():
                self._connected.set_result(None)
        elif state == "disconnected":
            reason = f"the server at {self._options.address} is gone: {detail}"
            error = PeerLostError(reason, hint="is it still up? what the cloud held of this run is lost")
            if not self._connected.done():
                self._lose(error)
            elif self._expiry is None:
                self._expiry = asyncio.get_running_loop().call_later(PATIENCE_SECONDS, self._lose, error)

    def _lose(self, error: FarshoreError) -> None:
        self.lost = self.lost or error
        if not self._connected.done():
            self._connected.set_exception(error)
        self._hosted.fail(error)


class _Hosted:
    """The one program of an interactive node: the user's own process. It is ``Hosted``, and its session's ``Agent``."""

    own_runs_only = True

    def __init__(self, node: InteractiveNode) -> None:
        self._node = node
        self._waiting: Future[pb.StartProgram] = Future()
        self._run_id = ""
        self._command: pb.StartProgram | None = None
        self._session: NodeProcessSession | None = None
        self._error: FarshoreError | None = None

    def expect(self) -> Future[pb.StartProgram]:
        """What the next start command will be put into."""
        self._waiting = Future()
        if self._error is not None:
            self._waiting.set_exception(self._error)
        return self._waiting

    def attach(self, session: NodeProcessSession) -> None:
        """This session's channel fails when the run does."""
        self._session = session
        if self._error is not None:
            session.channel.fail(self._error)

    def fail(self, error: FarshoreError) -> None:
        """The run is over for this process."""
        self._error = self._error or error
        if not self._waiting.done():
            self._waiting.set_exception(error)
        if self._session is not None:
            self._session.channel.fail(error)

    # ---- what the server asks for ----

    def renew(self, member: Membership) -> None:
        self._node._member = member

    def running(self) -> list[pb.RunningProgram]:
        command = self._command
        return [pb.RunningProgram(run_id=command.run_id, epoch=command.epoch)] if command and not self._error else []

    def opened(self, run_id: str) -> None:
        self._run_id = run_id

    def start(self, command: pb.StartProgram) -> None:
        if self._command is None and command.run_id == self._run_id and not self._waiting.done():
            self._command = command
            self._waiting.set_result(command)
            return
        # A run that an operator gave to this node by name: there is no program for it here.
        error = f"the node '{self._node._options.name}' is a user's process and takes only the run that it opens"
        exited = pb.ProgramExited(
            run_id=command.run_id, epoch=command.epoch, exit_code=int(ExitCode.REFUSED), error=error
        )
        self._node._agent.outbox.put(pb.NodeEvent(exited=exited))

    def stop(self, run_id: str, epoch: int, reason: str) -> None:
        if run_id == self._run_id:  # the end of a run of an earlier process is none of this one's business
            self.fail(RunFailedError(f"run {run_id} has ended: {reason}"))

    def refused(self, reason: str) -> None:
        self.fail(RefusedError(f"the server does not open the run: {reason}"))

    # ---- what the session says ----

    def listen(self, on_message: Callable[[Json], None]) -> None:
        """Nothing: a failing run fails the session's channel with its reason."""

    def send(self, message: Json) -> None:
        if message.get("type") == "log" and self._command is not None:
            line = self._node._agent.outbox.line
            self._node._io.loop.call_soon_threadsafe(line, self._command.run_id, str(message.get("line", "")))


def _membership(options: AgentOptions) -> Membership:
    """The kept membership, unless the token is of another server."""
    kept = membership(options)
    if options.token and kept.pinned and kept.root is not None:
        wanted = Token.parse(options.token).fingerprint
        found = hashlib.sha256(ssl.PEM_cert_to_DER_cert(kept.root.decode())).hexdigest()
        if wanted and wanted != found:
            return join(options)
    return kept


def _lock_home(options: AgentOptions) -> int:
    """Keep other processes from being the same node; returns the lock's descriptor."""
    private_folder(options.home)
    descriptor = os.open(options.home / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise ConfigError(
            f"another process is the node '{options.name}' at the moment", hint="give this one another name="
        ) from None
    return descriptor
