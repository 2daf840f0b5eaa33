"""Channels over gRPC: one bidirectional stream of raw chunks per channel, opened by the node with a ticket.

The service ``/farshore.data.v1.Data/Attach`` has no messages: its serializers are the identity, because a protobuf
``bytes`` field would cost a copy of everything.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import Any, Protocol

import grpc

from ..core.errors import FarshoreError, RefusedError, WireError
from .channel import Channel
from .chunks import CHUNK_BYTES
from .io import IoThread
from .pump import STALL_SECONDS, Read, Write, pump

logger = logging.getLogger(__name__)

SERVICE = "farshore.data.v1.Data"
METHOD = f"/{SERVICE}/Attach"
TICKET = "farshore-ticket"

#: Chunks are a mebibyte; anything larger is refused by gRPC itself.
OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", 2 * CHUNK_BYTES),
    ("grpc.max_send_message_length", 2 * CHUNK_BYTES),
    ("grpc.so_reuseport", 0),
    ("grpc.http2.bdp_probe", 1),
    ("grpc.enable_retries", 0),
]

#: Connections that are tried once a channel is closed, to say goodbye where the last one broke.
_GOODBYE_TRIES = 3
_FIRST_PAUSE = 0.1

#: Codes with which a server says no for good.
_REFUSALS = (
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.FAILED_PRECONDITION,
)

#: Gets the ticket and the connection's two ends, and serves it until it ends.
Serve = Callable[[str, Read, Write], Awaitable[None]]

#: Gets the ticket and gRPC's name of whoever dialled, see :func:`farshore.wire.tcp_info.peer_of`.
Dialled = Callable[[str, str], None]


def attach_handler(serve: Serve, dialled: Dialled | None = None) -> grpc.GenericRpcHandler:
    """The data service, to be added to a ``grpc.aio`` server.

    Parameters
    ----------
    serve : callable
        ``await serve(ticket, read, write)``; a :class:`RefusedError` becomes the status ``PERMISSION_DENIED``.
    dialled : callable, optional
        ``dialled(ticket, peer)``: told before each connection is served.
    """

    async def attach(_: Any, context: Any) -> None:
        ticket = dict(context.invocation_metadata()).get(TICKET, "")
        if dialled is not None:
            dialled(ticket, context.peer())
        try:
            await serve(ticket, _reader(context), context.write)
        except RefusedError as error:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        except WireError as error:
            logger.warning("a data connection from %s was closed: %s", context.peer(), error)
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))

    return grpc.method_handlers_generic_handler(
        SERVICE, {"Attach": grpc.stream_stream_rpc_method_handler(attach, None, None)}
    )


def _reader(call: Any) -> Read:
    async def read() -> bytes | None:
        chunk = await call.read()
        return None if chunk is grpc.aio.EOF else chunk

    return read


class Shape(Protocol):
    """What a :class:`Dialer` puts between a channel and its connection."""

    @property
    def chunk_bytes(self) -> int:
        """Chunks should not be larger."""

    def __call__(self, read: Read, write: Write) -> tuple[Read, Write]:
        """Wrap a connection's two ends."""

    async def flush(self) -> None:
        """Wait until all that was written has left."""


class Dialer:
    """Keeps a node's channel connected: dials, serves, and dials again with growing pauses.

    Parameters
    ----------
    channel : Channel
    io : IoThread
    target : str
        ``host:port``.
    ticket : str
        Opens this node's connection of this run.
    credentials : grpc.ChannelCredentials, optional
        None: without TLS, for loopback only.
    options : list, optional
        More gRPC channel options, e.g. ``grpc.ssl_target_name_override``.
    on_state : callable, optional
        Told in words what the connection does, e.g. ``reconnecting to host:50051 in 4 s: connection refused``.
    shape : Shape, optional
        Wraps each connection's two ends, e.g. a :class:`~farshore.wire.shaper.Shaper`.
    """

    def __init__(
        self,
        channel: Channel,
        io: IoThread,
        target: str,
        ticket: str,
        credentials: grpc.ChannelCredentials | None = None,
        *,
        options: list[tuple[str, Any]] | None = None,
        on_state: Callable[[str], None] | None = None,
        shape: Shape | None = None,
        stall_seconds: float = STALL_SECONDS,
        longest_pause: float = 10.0,
    ) -> None:
        self._channel, self._io, self._target, self._ticket = channel, io, target, ticket
        self._credentials, self._options = credentials, [*OPTIONS, *(options or [])]
        self._on_state = on_state or (lambda state: logger.info("%s", state))
        self._shape = shape
        if shape is not None:
            channel.chunk_bytes = min(channel.chunk_bytes, shape.chunk_bytes)
        self._stall = stall_seconds
        self._longest = longest_pause
        self._future: Any = None

    def start(self) -> Dialer:
        """Begin dialling; returns at once."""
        self._future = self._io.submit(self._run())
        return self

    def join(self, timeout: float) -> None:
        """Wait until the last connection of a closed channel has ended, its goodbye sent, or ``timeout`` seconds."""
        if self._future is not None:
            with suppress(TimeoutError, CancelledError):
                self._future.result(timeout)

    def stop(self, timeout: float = 5.0) -> None:
        """End the connection; the channel's program should have closed it before."""
        if self._future is not None and not self._future.done():
            self._future.cancel()

    async def _run(self) -> None:
        pause = _FIRST_PAUSE
        goodbyes = _GOODBYE_TRIES
        while True:
            greetings = self._channel.greetings
            reason = ""
            try:
                await self._once()
            except grpc.aio.AioRpcError as error:
                if error.code() in _REFUSALS:
                    self._channel.fail(RefusedError(f"the server refused the data connection: {error.details()}"))
                    return
                reason = error.details() or error.code().name
            except FarshoreError as error:
                reason = str(error)
            if self._channel.stopped:
                # Closed just when its connection broke: the goodbye may be lost, so it is said on another one.
                if not reason or not goodbyes or self._channel.peer_left:
                    return
                goodbyes -= 1
            if self._channel.greetings > greetings:  # it worked for a while
                pause = _FIRST_PAUSE
            wait = pause * random.uniform(0.8, 1.2)  # noqa: S311 - spreads reconnects, guards nothing
            self._on_state(f"reconnecting to {self._target} in {wait:.1f} s: {reason or 'the connection ended'}")
            await asyncio.sleep(wait)
            pause = min(2 * pause, self._longest)

    async def _once(self) -> None:
        """One connection from its start to its end."""
        if self._credentials is None:
            dialled = grpc.aio.insecure_channel(self._target, options=self._options)
        else:
            dialled = grpc.aio.secure_channel(self._target, self._credentials, options=self._options)
        async with dialled:
            call: Any = dialled.stream_stream(METHOD, None, None)(metadata=((TICKET, self._ticket),))
            try:
                await self._serve(call)
            except asyncio.InvalidStateError:  # written to after its end
                pass
            finally:
                over = call.done()
                call.cancel()
            if over and await call.code() is not grpc.StatusCode.OK:
                raise _failure(await call.code(), await call.details())

    async def _serve(self, call: Any) -> None:
        read, write = _reader(call), call.write
        if self._shape is not None:
            read, write = self._shape(read, write)

        async def finish() -> None:
            if self._shape is not None:
                await self._shape.flush()
            await call.done_writing()

        # grpc.aio cancels a call whose read is cancelled, and a goodbye that has not left yet with it.
        await pump(self._channel, read, write, stall_seconds=self._stall, finish=finish)


def _failure(code: grpc.StatusCode, details: str) -> grpc.aio.AioRpcError:
    nothing = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(code, nothing, nothing, details, None)
