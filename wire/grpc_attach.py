"""Channels over gRPC: one bidirectional stream of raw chunks per channel, opened by the node with a ticket.

The service ``/farshore.data.v1.Data/Attach`` has no protobuf messages. Its serializers are the identity, because a
protobuf ``bytes`` field would require another copy of all data.
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

#: Options of gRPC channels and servers; gRPC rejects chunks of more than twice the regular size.
OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", 2 * CHUNK_BYTES),
    ("grpc.max_send_message_length", 2 * CHUNK_BYTES),
    ("grpc.so_reuseport", 0),
    ("grpc.http2.bdp_probe", 1),
    ("grpc.enable_retries", 0),
]

#: Number of new connections to deliver the goodbye of a closed channel if the last one broke.
_GOODBYE_TRIES = 3
_INITIAL_BACKOFF = 0.1

#: Status codes after which a connection is not retried.
_PERMANENT_CODES = (
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.FAILED_PRECONDITION,
)

#: ``await handler(ticket, read, write)`` serves a connection until it ends.
ConnectionHandler = Callable[[str, Read, Write], Awaitable[None]]

#: ``on_connect(ticket, peer)``; ``peer`` is gRPC's name of the client, see :func:`farshore.wire.tcp_info.parse_peer`.
OnConnect = Callable[[str, str], None]


def attach_handler(serve: ConnectionHandler, on_connect: OnConnect | None = None) -> grpc.GenericRpcHandler:
    """Return the data service, as a handler to be added to a ``grpc.aio`` server.

    Parameters
    ----------
    serve : callable
        ``await serve(ticket, read, write)``. A :class:`RefusedError` is returned to the client with the status
        ``PERMISSION_DENIED``, a :class:`WireError` with ``INVALID_ARGUMENT``.
    on_connect : callable, optional
        ``on_connect(ticket, peer)``, called before each connection is served.
    """

    async def attach(_: Any, context: Any) -> None:
        ticket = dict(context.invocation_metadata()).get(TICKET, "")
        if on_connect is not None:
            on_connect(ticket, context.peer())
        try:
            await serve(ticket, _reader(context), context.write)
        except RefusedError as error:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        except WireError as error:
            logger.warning("closed the data connection from %s: %s", context.peer(), error)
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))

    return grpc.method_handlers_generic_handler(
        SERVICE, {"Attach": grpc.stream_stream_rpc_method_handler(attach, None, None)}
    )


def _reader(call: Any) -> Read:
    async def read() -> bytes | None:
        chunk = await call.read()
        return None if chunk is grpc.aio.EOF else chunk

    return read


class ConnectionShaper(Protocol):
    """Wraps the connections of a :class:`Dialer`, e.g. to limit their bandwidth."""

    @property
    def chunk_bytes(self) -> int:
        """Maximum size of chunks."""

    def __call__(self, read: Read, write: Write) -> tuple[Read, Write]:
        """Wrap the ``read`` and ``write`` functions of a connection."""

    async def flush(self) -> None:
        """Wait until everything written has been passed to the connection."""


class Dialer:
    """Keeps a node's channel connected: connects to the server and reconnects with exponential backoff.

    Parameters
    ----------
    channel : Channel
    io : IoThread
    target : str
        ``host:port``.
    ticket : str
        Authorizes the data connection of this node in this run.
    credentials : grpc.ChannelCredentials, optional
        None = without TLS, for loopback only.
    options : list, optional
        Additional gRPC channel options, e.g. ``grpc.ssl_target_name_override``.
    on_state : callable, optional
        Called with descriptions of the connection's state, e.g. ``reconnecting to host:50051 in 4 s: connection
        refused``. Default: log them.
    shaper : ConnectionShaper, optional
        Wraps each connection, e.g. a :class:`~farshore.wire.shaper.Shaper`.
    stall_seconds : float
        See :func:`~farshore.wire.pump.pump`.
    max_backoff : float
        Maximum pause between two attempts to connect, in seconds.
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
        shaper: ConnectionShaper | None = None,
        stall_seconds: float = STALL_SECONDS,
        max_backoff: float = 10.0,
    ) -> None:
        self._channel, self._io, self._target, self._ticket = channel, io, target, ticket
        self._credentials, self._options = credentials, [*OPTIONS, *(options or [])]
        self._on_state = on_state or (lambda state: logger.info("%s", state))
        self._shaper = shaper
        if shaper is not None:
            channel.chunk_bytes = min(channel.chunk_bytes, shaper.chunk_bytes)
        self._stall = stall_seconds
        self._max_backoff = max_backoff
        self._future: Any = None

    def start(self) -> Dialer:
        """Start connecting in the background."""
        self._future = self._io.submit(self._run())
        return self

    def join(self, timeout: float) -> None:
        """Wait up to ``timeout`` seconds until a closed channel has sent its goodbye and its connection has ended."""
        if self._future is not None:
            with suppress(TimeoutError, CancelledError):
                self._future.result(timeout)

    def stop(self, timeout: float = 5.0) -> None:
        """Cancel the connection. Close the channel first."""
        if self._future is not None and not self._future.done():
            self._future.cancel()

    async def _run(self) -> None:
        backoff = _INITIAL_BACKOFF
        goodbyes = _GOODBYE_TRIES
        while True:
            greetings = self._channel.greetings
            reason = ""
            try:
                await self._once()
            except grpc.aio.AioRpcError as error:
                if error.code() in _PERMANENT_CODES:
                    self._channel.fail(RefusedError(f"the server refused the data connection: {error.details()}"))
                    return
                reason = error.details() or error.code().name
            except FarshoreError as error:
                reason = str(error)
            if self._channel.stopped:
                # If the connection broke while the channel was closed, the goodbye may be lost: send it on another one.
                if not reason or not goodbyes or self._channel.peer_left:
                    return
                goodbyes -= 1
            if self._channel.greetings > greetings:  # the connection worked
                backoff = _INITIAL_BACKOFF
            wait = backoff * random.uniform(0.8, 1.2)  # noqa: S311 - jitter of reconnects, not security
            self._on_state(f"reconnecting to {self._target} in {wait:.1f} s: {reason or 'the connection was closed'}")
            await asyncio.sleep(wait)
            backoff = min(2 * backoff, self._max_backoff)

    async def _once(self) -> None:
        """Connect once and serve the channel until the connection ends."""
        if self._credentials is None:
            grpc_channel = grpc.aio.insecure_channel(self._target, options=self._options)
        else:
            grpc_channel = grpc.aio.secure_channel(self._target, self._credentials, options=self._options)
        async with grpc_channel:
            call: Any = grpc_channel.stream_stream(METHOD, None, None)(metadata=((TICKET, self._ticket),))
            try:
                await self._serve(call)
            except asyncio.InvalidStateError:  # a write after the end of the call
                pass
            finally:
                done = call.done()
                call.cancel()
            if done and await call.code() is not grpc.StatusCode.OK:
                raise _failure(await call.code(), await call.details())

    async def _serve(self, call: Any) -> None:
        read, write = _reader(call), call.write
        if self._shaper is not None:
            read, write = self._shaper(read, write)

        async def finish() -> None:
            if self._shaper is not None:
                await self._shaper.flush()
            await call.done_writing()

        # grpc.aio cancels a call when a read is cancelled, and discards a goodbye that has not been sent yet.
        await pump(self._channel, read, write, stall_seconds=self._stall, finish=finish)


def _failure(code: grpc.StatusCode, details: str) -> grpc.aio.AioRpcError:
    metadata = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(code, metadata, metadata, details, None)
