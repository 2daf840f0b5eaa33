"""The data service: relays nodes' data connections to run processes by ticket, without decoding them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.descriptors import LIMIT_HINT
from ..core.errors import RefusedError, WireError
from ..wire.grpc_attach import attach_handler
from ..wire.pump import Read, Write
from ..wire.relay import relay


@dataclass(frozen=True, slots=True)
class Route:
    """The target of a ticket: a run process's socket, and the node that the connection belongs to.

    Setting ``revoked`` ends the connections that use it.
    """

    run_id: str
    node: str
    socket: Path
    revoked: asyncio.Event = field(default_factory=asyncio.Event, compare=False)


def data_handler(
    routes: Mapping[str, Route], on_connect: Callable[[Route, str], None], is_short: Callable[[], bool] = lambda: False
) -> Any:
    """Return a gRPC handler that relays connections whose ticket is in ``routes``.

    Parameters
    ----------
    routes : Mapping[str, Route]
        Routes by ticket; may change at any time.
    on_connect : callable
        ``on_connect(route, peer)``: called before a connection is relayed.
    is_short : callable, optional
        Whether descriptors are short, so that no further connection can be relayed now.
    """

    async def serve(ticket: str, read: Read, write: Write) -> None:
        route = routes.get(ticket)
        if route is None:
            raise RefusedError("the ticket does not belong to an active run")
        if is_short():
            raise WireError("the server has too few file descriptors for this connection", hint=LIMIT_HINT)
        try:
            await relay(ticket, read, write, route.socket, route.revoked)
        except OSError as error:
            raise WireError(f"run {route.run_id}: cannot relay the connection of node {route.node}: {error}") from error
        if route.revoked.is_set():
            raise RefusedError(f"node {route.node} was revoked")

    def connected(ticket: str, peer: str) -> None:
        if (route := routes.get(ticket)) is not None:
            on_connect(route, peer)

    return attach_handler(serve, connected)
