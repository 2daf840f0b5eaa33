"""The agent: connects a machine to the server as a node and runs one node process per run. Never imports torch.

``run(options)`` blocks until SIGTERM or SIGINT, or until the server refuses this node permanently; node processes end
with it. It prints nothing; state changes are reported to ``options.on_state``.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
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
from .commands import check_start, heartbeat_interval
from .held_runs import held, mark_finished
from .join import SERVER_NAME, Membership, check_unchanged, join, membership, rpc_error, versions_message
from .options import AgentOptions, AgentState
from .outbox import Outbox
from .programs import CommandHandler, Programs

__all__ = ["AgentOptions", "run"]

_log = logging.getLogger(__name__)
_Call: TypeAlias = "grpc.aio.StreamStreamCall[pb.NodeEvent, pb.NodeCommand]"
_INITIAL_BACKOFF, _MAX_BACKOFF = 0.2, 15.0
_LEAVE_SECONDS = 1.0


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
    """
    for name, path in options.data.items():
        if not path.exists():
            raise DataError(
                f"the data set '{name}' does not exist at {path}", hint="give its path with --data NAME=PATH"
            )
    # gRPC's own log repeats, in several lines, what farshore's errors say in one.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    absolute = {name: path.resolve() for name, path in options.data.items()}
    asyncio.run(Agent(replace(options, data=absolute, home=options.home.resolve())).serve())


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
        while True:
            try:
                async with control_channel(self._options.address, member) as channel:
                    await self._open_stream(channel, member, handler)
                reason = "the server closed the control stream"
            except grpc.aio.AioRpcError as error:
                failure = rpc_error(error, self._options.address)
                if not isinstance(failure, UnreachableError):
                    if not self._can_rejoin(error) or rejoined:
                        raise failure from error
                    rejoined = True
                    member = await asyncio.to_thread(join, self._options)
                    handler.update_membership(member)
                    continue
                reason = failure.message
                if not self.stopping.is_set():
                    await self._check_certificate(member)
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
        """Whether the server does not know the key (new home, or node revoked), and a token to join again is given."""
        return error.code() is grpc.StatusCode.UNAUTHENTICATED and self._options.token is not None

    async def _open_stream(self, channel: grpc.aio.Channel, member: Membership, handler: CommandHandler) -> None:
        call = NodesStub(channel).Control(metadata=(("farshore-key", member.key),))
        try:
            await _write(call, pb.NodeEvent(hello=await asyncio.to_thread(self._hello, handler)))
            welcome = await call.read()
            if not isinstance(welcome, pb.NodeCommand):
                raise await stream_error(call)
            if welcome.WhichOneof("command") == "goodbye":
                raise RefusedError(f"{self._options.address} rejected this node: {welcome.goodbye.reason}")
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
            asyncio.create_task(self._read_commands(call, handler), name="commands"),
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

    async def _read_commands(self, call: _Call, handler: CommandHandler) -> None:
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
