"""The service that nodes use: trade a token for a key, and keep a control stream."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import grpc

from ..core.errors import FarshoreError, RefusedError
from ..core.version import Versions
from ..proto import control_pb2 as pb
from ..proto.control_pb2_grpc import NodesServicer
from .rate_limit import RateLimit
from .registry import Node
from .rpc_errors import Context, metadata, peer, refuse
from .submission import Submission

if TYPE_CHECKING:
    from .orchestrator import Orchestrator

_log = logging.getLogger(__name__)

#: Bounds on what a hello may hold; a node is not trusted to be modest.
_MOST_DATA_SETS, _LONGEST_NAME = 1000, 200
_HELLO_SECONDS = 10.0
_LONGEST_CONFIGURATION = 1 << 18


class NodesService(NodesServicer):
    """Implements ``Nodes`` of ``control.proto`` for one orchestrator."""

    def __init__(self, orchestrator: Orchestrator) -> None:
        self._server = orchestrator
        self._failures = RateLimit()

    async def Join(self, request: pb.JoinRequest, context: Context) -> pb.JoinReply:  # noqa: N802
        """Trade a join token for a node key."""
        caller = peer(context)
        if (wait := self._failures.blocked(caller)) > 0:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"too many failed joins from here; wait {wait:.0f} s"
            )
        try:
            _compare(request.versions, f"the node '{request.name[:64]}'")
            key = self._server.credentials.join(request.token_secret, request.name)
        except FarshoreError as error:
            if isinstance(error, RefusedError):
                self._failures.failed(caller)
            await refuse(context, error, f"to let '{request.name[:64]}' join")
        _log.info("node %s joined from %s", request.name, caller)
        return pb.JoinReply(
            node_key=key,
            name=request.name,
            server_id=self._server.identity.server_id,
            versions=versions_message(),
        )

    async def Control(  # noqa: N802
        self, events: AsyncIterator[pb.NodeEvent], context: Context
    ) -> AsyncIterator[pb.NodeCommand]:
        """The stream of a node's life."""
        try:
            name = self._server.credentials.node_of(metadata(context, "farshore-key"))
            async with asyncio.timeout(_HELLO_SECONDS):
                hello = _hello(await anext(aiter(events)))
            _compare(hello.versions, f"the node '{name}'")
        except (TimeoutError, StopAsyncIteration):
            await refuse(context, RefusedError("the first message must be a hello"), "a control stream")
        except FarshoreError as error:
            await refuse(context, error, "a control stream")
        registry = self._server.registry
        node, commands = registry.connect(name, hello)
        _log.info("node %s connected from %s", name, peer(context))
        welcome = pb.Welcome(server_id=self._server.identity.server_id, heartbeat_seconds=registry.heartbeat_seconds)
        yield pb.NodeCommand(welcome=welcome)
        self._server.node_connected(node)
        listening = asyncio.create_task(self._listen(node, events), name=f"events of {name}")
        try:
            while (command := await _next(commands, listening)) is not None:
                yield command
                if command.WhichOneof("command") == "goodbye":
                    break
        finally:
            listening.cancel()
            registry.disconnect(node, commands)
            self._server.remember(node)

    async def _listen(self, node: Node, events: AsyncIterator[pb.NodeEvent]) -> None:
        async for event in events:
            if node.state == "lost":
                return  # it woke up after it was given up: with the stream's end it connects again, as everybody does
            self._server.registry.touch(node)
            which = event.WhichOneof("event")
            if which == "heartbeat":
                node.heartbeat = event.heartbeat
            elif which == "exited":
                self._server.program_exited(node, event.exited)
            elif which == "log":
                try:
                    self._server.log_lines(node, event.log)
                except RefusedError as error:
                    _log.warning("dropped log lines: %s", error)
            elif which == "open":
                await self._open(node, event.open)
            elif which == "leave":
                self._server.registry.leave(node, "it left")
                self._server.node_lost(node)
                return

    async def _open(self, node: Node, request: pb.OpenRun) -> None:
        """Start the run that a node asks for, or say why not."""
        try:
            run = self._server.open_run(node, request, await _opened_method(request))
            self._server.registry.command(node, pb.NodeCommand(opened=pb.RunOpened(run_id=run.id)))
            _log.info("node %s opened run %s (%s)", node.name, run.id, run.workload)
        except (FarshoreError, ImportError) as error:
            _log.warning("refused a run that node %s asked for: %s", node.name, error)
            self._server.registry.command(node, pb.NodeCommand(refused=pb.RunRefused(reason=str(error))))


async def _next(commands: asyncio.Queue[pb.NodeCommand], listening: asyncio.Task[None]) -> pb.NodeCommand | None:
    """The next command, or None when the node's side of the stream has ended."""
    getting = asyncio.create_task(commands.get())
    try:
        await asyncio.wait([getting, listening], return_when=asyncio.FIRST_COMPLETED)
        return getting.result() if getting.done() else None
    finally:
        getting.cancel()


def versions_message() -> pb.Versions:
    """This end's versions."""
    here = Versions.here()
    return pb.Versions(protocol=here.protocol, farshore=here.farshore, torch=here.torch, python=here.python)


def _compare(theirs: pb.Versions, whose: str) -> None:
    other = Versions(theirs.protocol, theirs.farshore[:40], theirs.torch[:40], theirs.python[:40])
    Versions.here().check(other, whose=whose)


async def _opened_method(request: pb.OpenRun) -> Submission:
    name = request.workload
    if len(request.config_json) > _LONGEST_CONFIGURATION or len(name) > _LONGEST_NAME:
        raise RefusedError(f"a run's configuration may have {_LONGEST_CONFIGURATION} characters")
    # Importing a method's module may take a while; nodes and runs must not wait for it.
    method = await asyncio.to_thread(Submission.of, name, request.config_json)
    if not method.node_may_open:
        raise RefusedError(f"a node may not open a run of '{name}'", hint="submit it with 'farshore run'")
    return method


def _hello(event: pb.NodeEvent) -> pb.Hello:
    if event.WhichOneof("event") != "hello":
        raise RefusedError("the first message must be a hello")
    hello = event.hello
    if len(hello.data) > _MOST_DATA_SETS or any(len(name) > _LONGEST_NAME for name in hello.data):
        raise RefusedError(f"a node may offer {_MOST_DATA_SETS} data sets with names of {_LONGEST_NAME} characters")
    return hello
