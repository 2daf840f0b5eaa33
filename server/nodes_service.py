"""The ``Nodes`` gRPC service: join with a token, and the control stream."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from ..core.errors import FarshoreError, RefusedError
from ..core.token_bucket import TokenBucket
from ..core.version import Versions
from ..proto import control_pb2 as pb
from ..proto.control_pb2_grpc import NodesServicer
from .credentials import WrongSecretError
from .profiles import check_hello
from .rate_limit import RateLimit
from .registry import Node
from .rpc_errors import Context, abort, abort_if_blocked, metadata, peer
from .stream_budget import StreamBudget
from .submission import Submission

if TYPE_CHECKING:
    from .orchestrator import Orchestrator

_log = logging.getLogger(__name__)

#: Limits on a node's hello message.
_MAX_DATA_SETS, _MAX_NAME_LENGTH, _MAX_HELD_RUNS = 1000, 200, 10_000
_HELLO_SECONDS = 10.0
_MAX_CONFIG_LENGTH = 1 << 18
#: Seconds for which a dismissed node is refused, and for its goodbye to be sent.
_DISMISSED_SECONDS, _GOODBYE_SECONDS = 60.0, 5.0


class NodesService(NodesServicer):
    """Implements ``Nodes`` of ``control.proto`` for one orchestrator.

    Parameters
    ----------
    orchestrator : Orchestrator
    authenticated : callable, optional
        Called with gRPC's name of the peer of each valid call.
    """

    def __init__(self, orchestrator: Orchestrator, authenticated: Callable[[str], None] = lambda peer: None) -> None:
        self._server, self._authenticated = orchestrator, authenticated
        self._failures = RateLimit()
        self._connections: dict[str, TokenBucket] = {}
        self._dismissed: dict[str, float] = {}

    async def Join(self, request: pb.JoinRequest, context: Context) -> pb.JoinReply:  # noqa: N802
        """Exchange a join token for a node key."""
        caller = peer(context)
        await abort_if_blocked(context, self._failures, caller, "failed joins")
        try:
            _check_versions(request.versions, f"the node '{request.name[:64]}'")
            joined = self._server.credentials.join(request.token_secret, request.name, request.attempt)
        except FarshoreError as error:
            if isinstance(error, WrongSecretError):
                self._failures.failed(caller)
            await abort(context, error, f"join of '{request.name[:64]}'")
        self._server.node_keys.joined(request.name)
        self._authenticated(context.peer())
        _log.info("node %s joined from %s", request.name, caller)
        return pb.JoinReply(
            node_key=joined.key,
            name=request.name,
            server_id=self._server.identity.server_id,
            versions=versions_message(),
            secret=joined.secret,
        )

    async def Control(  # noqa: N802
        self, events: AsyncIterator[pb.NodeEvent], context: Context
    ) -> AsyncIterator[pb.NodeCommand]:
        """Serve a node's control stream: receive events and yield commands until either side ends it."""
        registry, admission = self._server.registry, self._server.admission
        key = metadata(context, "farshore-key")
        # By name as well: a node with an old key must not shut out the others behind its router.
        claimed = f"{peer(context)} {key.partition(':')[0][:64]}"
        await abort_if_blocked(context, self._failures, claimed, "wrong keys of this node")
        try:
            name = self._server.credentials.authenticate(key)
            self._authenticated(context.peer())
            async with asyncio.timeout(_HELLO_SECONDS):
                hello = _hello(await anext(aiter(events)))
            _check_versions(hello.versions, f"the node '{name}'")
            await self._check_reconnection(name)
            presented = [metadata(context, key) for key in ("farshore-secret", "farshore-secret-previous")]
            secret = await admission.admit(name, hello, presented, peer(context))
            yield pb.NodeCommand(welcome=self._welcome(hello, secret))
            async with asyncio.timeout(_HELLO_SECONDS):
                if (which := (await anext(aiter(events))).WhichOneof("event")) != "stored":
                    raise RefusedError(f"expected 'stored' after the welcome, got '{which}'")
            await admission.confirm(name, secret)
        except (TimeoutError, StopAsyncIteration):
            await abort(context, RefusedError("expected 'hello' and 'stored' within 10 s each"), "control stream")
        except FarshoreError as error:
            if isinstance(error, WrongSecretError):
                self._failures.failed(claimed)
            await abort(context, error, "control stream")
        node, commands = registry.connect(name, hello)
        node.address = peer(context)
        _log.info("node %s connected from %s", name, node.address)
        self._server.node_events.connected(node)
        listening = asyncio.create_task(self._listen(node, events), name=f"events of {name}")
        try:
            while (command := await _next(commands, listening)) is not None:
                which = command.WhichOneof("command")
                if which is not None:
                    yield command
                if which in (None, "goodbye"):
                    break
        finally:
            listening.cancel()
            registry.disconnect(node, commands)
            self._server.node_events.save_last_seen(node)

    def _welcome(self, hello: pb.Hello, secret: str) -> pb.Welcome:
        return pb.Welcome(
            server_id=self._server.identity.server_id,
            heartbeat_seconds=self._server.registry.heartbeat_seconds,
            finished_runs=self._server.finished_runs(hello.held_runs),
            secret=secret,
        )

    async def _check_reconnection(self, name: str) -> None:
        """Delay a node that connects very often; refuse one that was dismissed a moment ago."""
        if (left := self._dismissed.get(name, 0.0) - time.monotonic()) > 0:
            raise RefusedError(f"node {name} was dismissed for sending too much; it may return in {left:.0f} s")
        bucket = self._connections.setdefault(name, TokenBucket(1.0, 20.0))
        await asyncio.sleep(bucket.spend(1.0))

    async def _listen(self, node: Node, events: AsyncIterator[pb.NodeEvent]) -> None:
        budget = StreamBudget(node.name)
        async for event in events:
            try:
                wait = budget.spend(event)
            except RefusedError as error:
                await self._dismiss(node, error.message)
                return
            if node.state == "lost":
                return  # already declared lost: ending the stream makes the node reconnect
            self._server.registry.touch(node)
            which = event.WhichOneof("event")
            if which == "heartbeat":
                node.heartbeat = event.heartbeat
            elif which == "exited":
                self._server.node_events.program_exited(node, event.exited)
            elif which == "log":
                try:
                    self._server.node_events.log_lines(node, event.log)
                except RefusedError as error:
                    _log.warning("dropped log lines: %s", error)
            elif which == "answer":
                node.answer(event.answer.nonce)
            elif which == "open":
                await self._open(node, event.open)
            elif which == "leave":
                self._server.registry.leave(node, "it left")
                self._server.node_events.lost(node)
                return
            await self._pause(node, wait)

    async def _pause(self, node: Node, seconds: float) -> None:
        """Read nothing for a while: gRPC's flow control stops the sender, whose heartbeats wait behind other events."""
        while seconds > 0 and node.state != "lost":
            step = min(seconds, self._server.registry.heartbeat_seconds)
            await asyncio.sleep(step)
            self._server.registry.touch(node)
            seconds -= step

    async def _dismiss(self, node: Node, reason: str) -> None:
        _log.warning("dismissed %s", reason)
        self._dismissed[node.name] = time.monotonic() + _DISMISSED_SECONDS
        self._server.node_events.dismiss(node, reason)
        await asyncio.sleep(_GOODBYE_SECONDS)  # the stream ends once the goodbye has been sent

    async def _open(self, node: Node, request: pb.OpenRun) -> None:
        """Open the run that a node requests, or send the reason of the refusal."""
        try:
            run = self._server.open_run(node, request, await _submission(request))
            self._server.registry.command(node, pb.NodeCommand(opened=pb.RunOpened(run_id=run.id)))
            _log.info("node %s opened run %s (%s)", node.name, run.id, run.workload)
        except FarshoreError as error:
            _log.warning("refused a run requested by node %s: %s", node.name, error)
            self._server.registry.command(node, pb.NodeCommand(refused=pb.RunRefused(reason=str(error))))


async def _next(commands: asyncio.Queue[pb.NodeCommand], listening: asyncio.Task[None]) -> pb.NodeCommand | None:
    """Return the next command, or None once the node has ended its side of the stream."""
    getting = asyncio.create_task(commands.get())
    try:
        await asyncio.wait([getting, listening], return_when=asyncio.FIRST_COMPLETED)
        return getting.result() if getting.done() else None
    finally:
        getting.cancel()


def versions_message() -> pb.Versions:
    """Return the versions of this process as a message."""
    here = Versions.local()
    return pb.Versions(protocol=here.protocol, farshore=here.farshore, torch=here.torch, python=here.python)


def _check_versions(received: pb.Versions, peer: str) -> None:
    theirs = Versions(received.protocol, received.farshore[:40], received.torch[:40], received.python[:40])
    Versions.local().check(theirs, peer=peer)


async def _submission(request: pb.OpenRun) -> Submission:
    name = request.workload
    if len(request.config_json) > _MAX_CONFIG_LENGTH or len(name) > _MAX_NAME_LENGTH:
        raise RefusedError(f"the run's configuration exceeds {_MAX_CONFIG_LENGTH} characters")
    # In a thread: importing the method's module can be slow and must not block the server.
    submission = await asyncio.to_thread(Submission.validate, name, request.config_json)
    if not submission.node_may_open:
        raise RefusedError(f"nodes may not open runs of '{name}'", hint="submit it with 'farshore run'")
    return submission


def _hello(event: pb.NodeEvent) -> pb.Hello:
    if event.WhichOneof("event") != "hello":
        raise RefusedError(f"expected 'hello' first, got '{event.WhichOneof('event')}'")
    hello = event.hello
    if len(hello.data) > _MAX_DATA_SETS or any(len(name) > _MAX_NAME_LENGTH for name in hello.data):
        raise RefusedError(
            f"a node can have at most {_MAX_DATA_SETS} data sets with names of at most {_MAX_NAME_LENGTH} characters"
        )
    if len(hello.held_runs) > _MAX_HELD_RUNS:
        raise RefusedError(f"a node can ask about at most {_MAX_HELD_RUNS} runs")
    check_hello(hello)
    return hello
