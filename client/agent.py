"""The agent: connects a machine to the server as a node and runs one node process per run. Never imports torch.

``run(options)`` blocks until SIGTERM or SIGINT, or until the server refuses this node permanently; node processes end
with it. It prints nothing; state changes are reported to ``options.on_state``.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
import signal
from collections.abc import Iterable
from dataclasses import replace
from typing import TypeAlias

import grpc
import grpc.aio
import psutil

from ..core.address import proxy_options
from ..core.errors import DataError, FarshoreError, RefusedError, UnreachableError
from ..proto import control_pb2 as pb
from ..proto.control_pb2_grpc import NodesStub
from .commands import check_start, heartbeat_interval, next_secret
from .held_runs import held, mark_finished
from .home import lock_home
from .join import SERVER_NAME, Membership, check_unchanged, join, membership, rpc_error, versions_message
from .options import AgentOptions, AgentState
from .outbox import Outbox
from .programs import CommandHandler, Programs

__all__ = ["AgentOptions", "run"]

_log = logging.getLogger(__name__)
_Call: TypeAlias = "grpc.aio.StreamStreamCall[pb.NodeEvent, pb.NodeCommand]"
_INITIAL_BACKOFF, _MAX_BACKOFF = 0.2, 15.0
_LEAVE_SECONDS = 1.0
#: How a server refuses a node until an operator decides, or until wrong keys under its name stop coming.
_REFUSED_FOR_NOW = (grpc.StatusCode.ABORTED, grpc.StatusCode.RESOURCE_EXHAUSTED)
#: How a server refuses a node's key: unknown, revoked or outdated, or contested.
_KEY_REFUSED = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.ABORTED)


def run(options: AgentOptions) -> None:
    """Run the agent until SIGTERM or SIGINT.

    Raises
    ------
    RefusedError
        The server refused the token, the key or the name, or its certificate is not the expected one.
    VersionError
        The server runs another version.
    WireError
        The server sent an invalid command.
    UnreachableError
        No server answers and this node has never joined; a node that has joined before keeps trying.
    DataError
        A data path does not exist.
    ConfigError
        Another process on this machine runs as this node.
    """
    for name, path in options.data.items():
        if not path.exists():
            raise DataError(
                f"the data set '{name}' does not exist at {path}", hint="give its path with --data NAME=PATH"
            )
    # gRPC's own log repeats, in several lines, what farshore's errors say in one.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    absolute = {name: path.resolve() for name, path in options.data.items()}
    lock = lock_home(options)
    try:
        asyncio.run(Agent(replace(options, data=absolute, home=options.home.resolve())).serve())
    finally:
        lock.release()


class Agent:
    """Maintains a node's control stream; passes the server's commands to a :class:`~.programs.CommandHandler`."""

    def __init__(self, options: AgentOptions) -> None:
        self._options = options
        self.outbox = Outbox()
        self.stopping = asyncio.Event()
        self._backoff = _INITIAL_BACKOFF
        self._connected = False
        self._profile = pb.NodeProfile()
        self._programs: Programs | None = None
        self._member: Membership | None = None
        self._instance = secrets.token_hex(16)

    async def serve(self) -> None:
        """Join, connect and stay connected until SIGTERM, SIGINT or a permanent error."""
        loop = asyncio.get_running_loop()
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signal_number, self.stopping.set)
        connection = asyncio.create_task(self._join_and_connect(), name="control stream")
        stopping = asyncio.create_task(self.stopping.wait(), name="stop")
        try:
            await asyncio.wait([connection, stopping], return_when=asyncio.FIRST_COMPLETED)
            if connection.done():
                connection.result()
            else:
                await self.leave(connection)
        finally:
            connection.cancel()
            stopping.cancel()
            await asyncio.gather(connection, stopping, return_exceptions=True)
            if self._programs is not None:
                await self._programs.stop_all()
            self._report_state("stopped", "")

    async def _join_and_connect(self) -> None:
        if self._options.measure is not None:
            self._profile = await asyncio.to_thread(self._options.measure)
        self._report_state("joining", self._options.address)
        member = await asyncio.to_thread(membership, self._options)
        self._programs = Programs(self._options, member, self.outbox)
        await self.keep_connected(member, self._programs)

    async def keep_connected(self, member: Membership, handler: CommandHandler) -> None:
        """Connect, and reconnect with jittered exponential backoff; returns only once ``stopping`` is set."""
        rejoined = False
        self._member = member
        while True:
            try:
                async with control_channel(self._options.address, self._member) as channel:
                    await self._open_stream(channel, self._member, handler)
                reason = "the server closed the control stream"
            except grpc.aio.AioRpcError as error:
                failure = rpc_error(error, self._options.address, joined=True)
                if self._can_rejoin(error) and not rejoined:
                    rejoined = True
                    if await self._rejoin(failure, handler):
                        continue
                if not isinstance(failure, UnreachableError):
                    raise failure from error
                if error.code() in _REFUSED_FOR_NOW:
                    self._backoff = _MAX_BACKOFF
                reason = failure.message
                if not self.stopping.is_set():
                    await self._check_certificate(self._member)
            if self.stopping.is_set():
                return
            self._report_state("disconnected", reason)
            _log.info("%s; reconnecting in about %.1f s", reason, self._backoff)
            await asyncio.sleep(self._backoff * random.uniform(0.5, 1.5))  # noqa: S311 - jitter, not cryptography
            self._backoff = min(self._backoff * 1.7, _MAX_BACKOFF)

    async def _check_certificate(self, member: Membership) -> None:
        """Raise if the server now presents another certificate: retrying would never succeed."""
        try:
            await asyncio.to_thread(check_unchanged, self._options.address, member)
        except UnreachableError:
            return

    def _can_rejoin(self, error: grpc.aio.AioRpcError) -> bool:
        """Whether the server does not accept the key (new home, revoked, contested), and a token is given."""
        return error.code() in _KEY_REFUSED and self._options.token is not None

    async def _rejoin(self, failure: FarshoreError, handler: CommandHandler) -> bool:
        """Join again with the token; returns whether that succeeded, and raises if only a new token could help."""
        try:
            self._member = await asyncio.to_thread(join, self._options)
        except RefusedError as error:
            if isinstance(failure, UnreachableError):  # contested: the operator may admit this node as it is
                return False
            message = f"{failure.message}; the token does not help: {error.message}"
            raise RefusedError(message, hint=error.hint) from error
        handler.update_membership(self._member)
        return True

    async def _open_stream(self, channel: grpc.aio.Channel, member: Membership, handler: CommandHandler) -> None:
        hello = await asyncio.to_thread(self._hello, handler)
        secret, previous = member.secrets
        metadata = [("farshore-key", member.key), ("farshore-secret", secret), ("farshore-secret-previous", previous)]
        call = NodesStub(channel).Control(metadata=tuple(metadata))
        try:
            await _write(call, pb.NodeEvent(hello=hello))
            welcome = await call.read()
            if not isinstance(welcome, pb.NodeCommand):
                raise await stream_error(call)
            if welcome.WhichOneof("command") == "goodbye":
                raise RefusedError(f"{self._options.address} rejected this node: {welcome.goodbye.reason}")
            self._member = member.with_secret(next_secret(welcome.welcome))
            await asyncio.to_thread(self._member.store, self._options.home)
            await _write(call, pb.NodeEvent(stored=pb.SecretStored()))
            await self._mark_finished(welcome.welcome.finished_runs)
            self._backoff, self._connected = _INITIAL_BACKOFF, True
            self._report_state("connected", self._options.address)
            self.outbox.reopen()
            await self._exchange(call, handler, heartbeat_interval(welcome.welcome))
        finally:
            self._connected = False
            call.cancel()

    async def _exchange(self, call: _Call, handler: CommandHandler, interval: float) -> None:
        """Read commands and write events until the stream ends or fails."""
        lock = asyncio.Lock()  # gRPC allows one write at a time
        tasks = [
            asyncio.create_task(self._read_commands(call, handler, lock), name="commands"),
            asyncio.create_task(self._write_events(call, lock), name="events"),
            asyncio.create_task(self._write_heartbeats(call, lock, interval), name="heartbeats"),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:  # more specific than the error of the stream
            if isinstance(result, FarshoreError):
                raise result
        for task in done:
            task.result()

    async def _read_commands(self, call: _Call, handler: CommandHandler, lock: asyncio.Lock) -> None:
        while isinstance(command := await call.read(), pb.NodeCommand):
            which = command.WhichOneof("command")
            if which == "start":
                check_start(command.start)
                handler.start(command.start)
            elif which == "stop":
                handler.stop(command.stop.run_id, command.stop.epoch, command.stop.reason)
            elif which == "opened":
                handler.run_opened(command.opened.run_id)
            elif which == "refused":
                handler.run_refused(command.refused.reason)
            elif which == "challenge":
                async with lock:
                    await _write(call, pb.NodeEvent(answer=command.challenge))
            elif which == "finished":
                await self._mark_finished(command.finished.run_ids)
            elif which == "goodbye":
                raise RefusedError(f"{self._options.address} rejected this node: {command.goodbye.reason}")
        raise await stream_error(call)

    async def _mark_finished(self, ids: Iterable[str]) -> None:
        await asyncio.to_thread(mark_finished, self._options.home / "runs", list(ids))

    async def _write_events(self, call: _Call, lock: asyncio.Lock) -> None:
        while True:
            event = await self.outbox.take()
            async with lock:
                await _write(call, event)

    async def _write_heartbeats(self, call: _Call, lock: asyncio.Lock, interval: float) -> None:
        psutil.cpu_percent()  # the first call only starts the measurement
        while True:
            await asyncio.sleep(interval)
            heartbeat = pb.Heartbeat(cpu_percent=psutil.cpu_percent(), memory_used_bytes=psutil.virtual_memory().used)
            async with lock:
                await _write(call, pb.NodeEvent(heartbeat=heartbeat))

    async def leave(self, connection: asyncio.Task[None]) -> None:
        """Send a leave event, so that the server need not wait for missed heartbeats, then cancel ``connection``.

        Cancelling a task that reads or writes the stream ends the stream, so the event must be sent first.
        """
        self.stopping.set()
        if self._connected:
            self.outbox.put(pb.NodeEvent(leave=pb.Leave()))
            await asyncio.wait([connection], timeout=_LEAVE_SECONDS)
        connection.cancel()

    def _hello(self, handler: CommandHandler) -> pb.Hello:
        index, count = self._options.shard or (0, 0)
        return pb.Hello(
            versions=versions_message(),
            profile=self._profile,
            data=sorted(self._options.data),
            shard_index=index,
            shard_count=count,
            running=handler.running_programs(),
            own_runs_only=handler.own_runs_only,
            labels=self._options.labels,
            held_runs=held(self._options.home / "runs"),
            instance=self._instance,
        )

    def _report_state(self, state: AgentState, detail: str) -> None:
        if self._options.on_state is not None:
            self._options.on_state(state, detail)


def control_channel(address: str, member: Membership) -> grpc.aio.Channel:
    """Open a gRPC channel for the control stream."""
    options: list[tuple[str, str | int]] = [
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.enable_retries", 0),
        # The agent has its own backoff; that of gRPC would delay the reconnection further.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.use_local_subchannel_pool", 1),
        *proxy_options(address),
    ]
    if member.root is None:
        return grpc.aio.insecure_channel(address, options)
    if member.pinned:
        options.append(("grpc.ssl_target_name_override", SERVER_NAME))
    return grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(member.root), options)


async def _write(call: _Call, event: pb.NodeEvent) -> None:
    try:
        await call.write(event)
    except asyncio.InvalidStateError:  # raised by gRPC on a write to a stream that has ended
        raise await stream_error(call) from None


async def stream_error(call: _Call) -> grpc.aio.AioRpcError:
    """Return the error of a stream that has ended; a clean end counts as UNAVAILABLE."""
    code, details = await call.code(), await call.details()
    if code is grpc.StatusCode.OK:
        code, details = grpc.StatusCode.UNAVAILABLE, "the server closed the control stream"
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details, None)
