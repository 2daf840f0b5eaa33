"""The agent makes a machine a node: it keeps the control stream and runs one node process per run. Never imports torch.

``run(options)`` blocks until SIGTERM or SIGINT, or until the server refuses this node for good; node processes die
with it. It prints nothing; ``options.on_state`` tells what happens.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
from dataclasses import replace
from typing import TypeAlias

import grpc
import grpc.aio
import psutil

from ..core.errors import DataError, FarshoreError, RefusedError, UnreachableError
from ..proto import control_pb2 as pb
from ..proto.control_pb2_grpc import NodesStub
from .join import SERVER_NAME, Membership, check_unchanged, join, membership, refusal, versions_message
from .options import AgentOptions, State
from .outbox import Outbox
from .programs import Hosted, Programs

__all__ = ["AgentOptions", "run"]

_log = logging.getLogger(__name__)
_Call: TypeAlias = "grpc.aio.StreamStreamCall[pb.NodeEvent, pb.NodeCommand]"
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 15.0
_LEAVE_SECONDS = 1.0


def run(options: AgentOptions) -> None:
    """Be a node until told to stop.

    Raises
    ------
    RefusedError
        The server refused the token, the key or the name, or its certificate is not the expected one.
    VersionError
        The server runs another version.
    UnreachableError
        Nobody answers at the address and this node has never joined; a node that has keeps trying.
    DataError
        A data path does not exist.
    """
    for name, path in options.data.items():
        if not path.exists():
            raise DataError(f"the data set '{name}' is not at {path}", hint="give its path with --data NAME=PATH")
    # gRPC's own log says in another way, and in several lines, what our errors say in one.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    absolute = {name: path.resolve() for name, path in options.data.items()}
    asyncio.run(Agent(replace(options, data=absolute, home=options.home.resolve())).serve())


class Agent:
    """Keeps a node's control stream; what the server asks for is done by :class:`~.programs.Hosted`."""

    def __init__(self, options: AgentOptions) -> None:
        self._options = options
        self.outbox = Outbox()
        self.stopping = asyncio.Event()
        self._pause = _FIRST_PAUSE
        self._connected = False
        self._profile = pb.NodeProfile()
        self._programs: Programs | None = None

    async def serve(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stopping.set)
        staying = asyncio.create_task(self._be_node(), name="control stream")
        stopping = asyncio.create_task(self.stopping.wait(), name="stop")
        try:
            await asyncio.wait([staying, stopping], return_when=asyncio.FIRST_COMPLETED)
            if staying.done():
                staying.result()
            else:
                await self.leave(staying)
        finally:
            staying.cancel()
            stopping.cancel()
            await asyncio.gather(staying, stopping, return_exceptions=True)
            if self._programs is not None:
                await self._programs.stop_all()
            self._tell("stopped", "")

    async def _be_node(self) -> None:
        if self._options.measure is not None:
            self._profile = await asyncio.to_thread(self._options.measure)
        self._tell("joining", self._options.address)
        member = await asyncio.to_thread(membership, self._options)
        self._programs = Programs(self._options, member, self.outbox)
        await self.stay_connected(member, self._programs)

    async def stay_connected(self, member: Membership, programs: Hosted) -> None:
        """Connect, and connect again with growing, jittered pauses; ends by an error only."""
        fresh_key = False
        while True:
            try:
                async with control_channel(self._options.address, member) as channel:
                    await self._converse(channel, member, programs)
                reason = "the server closed the control stream"
            except grpc.aio.AioRpcError as error:
                failure = refusal(error, self._options.address)
                if not isinstance(failure, UnreachableError):
                    if not self._may_join_again(error) or fresh_key:
                        raise failure from error
                    fresh_key = True
                    member = await asyncio.to_thread(join, self._options)
                    programs.renew(member)
                    continue
                reason = failure.message
                if not self.stopping.is_set():
                    await self._check_certificate(member)
            if self.stopping.is_set():
                return
            self._tell("disconnected", reason)
            _log.info("%s; trying again in about %.1f s", reason, self._pause)
            await asyncio.sleep(self._pause * random.uniform(0.5, 1.5))  # noqa: S311 - jitter is no secret
            self._pause = min(self._pause * 1.7, _LONGEST_PAUSE)

    async def _check_certificate(self, member: Membership) -> None:
        """A server with another certificate never becomes the right one by waiting."""
        try:
            await asyncio.to_thread(check_unchanged, self._options.address, member)
        except UnreachableError:
            return

    def _may_join_again(self, error: grpc.aio.AioRpcError) -> bool:
        """An unknown key and a token at hand: the server's home is new, or this node was revoked and invited again."""
        return error.code() is grpc.StatusCode.UNAUTHENTICATED and self._options.token is not None

    async def _converse(self, channel: grpc.aio.Channel, member: Membership, programs: Hosted) -> None:
        call = NodesStub(channel).Control(metadata=(("farshore-key", member.key),))
        try:
            await call.write(pb.NodeEvent(hello=self._hello(programs)))
            welcome = await call.read()
            if not isinstance(welcome, pb.NodeCommand):
                raise await stream_failure(call)
            if welcome.WhichOneof("command") == "goodbye":
                raise RefusedError(f"{self._options.address} refused: {welcome.goodbye.reason}")
            self._pause, self._connected = _FIRST_PAUSE, True
            self._tell("connected", self._options.address)
            self.outbox.reopen()
            interval = welcome.welcome.heartbeat_seconds or 5.0
            await self._talk(call, programs, interval)
        finally:
            self._connected = False
            call.cancel()

    async def _talk(self, call: _Call, programs: Hosted, interval: float) -> None:
        """Read and write until the stream ends or an error ends it."""
        lock = asyncio.Lock()  # gRPC takes one write at a time
        jobs = [
            asyncio.create_task(self._obey(call, programs), name="commands"),
            asyncio.create_task(self._report(call, lock), name="events"),
            asyncio.create_task(self._beat(call, lock, interval), name="heartbeats"),
        ]
        try:
            done, _ = await asyncio.wait(jobs, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for job in jobs:
                job.cancel()
            results = await asyncio.gather(*jobs, return_exceptions=True)
        for result in results:  # our own refusal says more than the stream's end
            if isinstance(result, FarshoreError):
                raise result
        for job in done:
            try:
                job.result()
            except asyncio.InvalidStateError:  # gRPC's word for writing to a stream that has ended
                raise await stream_failure(call) from None

    async def _obey(self, call: _Call, programs: Hosted) -> None:
        while isinstance(command := await call.read(), pb.NodeCommand):
            which = command.WhichOneof("command")
            if which == "start":
                programs.start(command.start)
            elif which == "stop":
                programs.stop(command.stop.run_id, command.stop.epoch, command.stop.reason)
            elif which == "opened":
                programs.opened(command.opened.run_id)
            elif which == "refused":
                programs.refused(command.refused.reason)
            elif which == "goodbye":
                raise RefusedError(f"{self._options.address} sent this node away: {command.goodbye.reason}")
        raise await stream_failure(call)

    async def _report(self, call: _Call, lock: asyncio.Lock) -> None:
        while True:
            event = await self.outbox.take()
            async with lock:
                await call.write(event)

    async def _beat(self, call: _Call, lock: asyncio.Lock, interval: float) -> None:
        psutil.cpu_percent()  # the first call only starts the measurement
        while True:
            await asyncio.sleep(interval)
            beat = pb.Heartbeat(cpu_percent=psutil.cpu_percent(), memory_used_bytes=psutil.virtual_memory().used)
            async with lock:
                await call.write(pb.NodeEvent(heartbeat=beat))

    async def leave(self, staying: asyncio.Task[None]) -> None:
        """Stop on purpose: tell the server, so that it need not wait for missed heartbeats, and end ``staying``.

        The word goes out like every other event: nothing that waits for the stream may be cancelled before, as gRPC
        would end the stream with it.
        """
        self.stopping.set()
        if self._connected:
            self.outbox.put(pb.NodeEvent(leave=pb.Leave()))
            await asyncio.wait([staying], timeout=_LEAVE_SECONDS)
        staying.cancel()

    def _hello(self, programs: Hosted) -> pb.Hello:
        index, count = self._options.shard or (0, 0)
        return pb.Hello(
            versions=versions_message(),
            profile=self._profile,
            data=sorted(self._options.data),
            shard_index=index,
            shard_count=count,
            running=programs.running(),
            own_runs_only=programs.own_runs_only,
        )

    def _tell(self, state: State, detail: str) -> None:
        if self._options.on_state is not None:
            self._options.on_state(state, detail)


def control_channel(address: str, member: Membership) -> grpc.aio.Channel:
    """A connection for the control stream."""
    options: list[tuple[str, str | int]] = [
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.enable_retries", 0),
        # The agent paces its own attempts; gRPC's back-off would hide a server that is back.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if member.root is None:
        return grpc.aio.insecure_channel(address, options)
    if member.pinned:
        options.append(("grpc.ssl_target_name_override", SERVER_NAME))
    return grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(member.root), options)


async def stream_failure(call: _Call) -> grpc.aio.AioRpcError:
    """The error that a stream which ended stands for; a clean end counts as unavailable."""
    code, details = await call.code(), await call.details()
    if code is grpc.StatusCode.OK:
        code, details = grpc.StatusCode.UNAVAILABLE, "the server closed the control stream"
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details, None)
