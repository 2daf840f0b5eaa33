"""A run process's own port, for data connections that bypass the orchestrator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio

from ..core.address import join_address
from ..core.errors import PortInUseError
from ..wire.grpc_attach import OPTIONS, ConnectionHandler, attach_handler
from .connection_guard import ConnectionGuard

#: Keeps references: gRPC stops a server that is garbage-collected.
_open: list[grpc.aio.Server] = []


async def open_direct_port(
    settings: dict[str, Any], serve: ConnectionHandler, on_connect: Callable[[str, str], bool]
) -> int:
    """Listen on the first free port of a range, with the orchestrator's certificate.

    Parameters
    ----------
    settings : dict
        ``host``, ``first``, ``last``, and ``certificate`` and ``key`` (PEM) unless insecure.
    serve : callable
        As for :func:`farshore.wire.grpc_attach.attach_handler`.
    on_connect : callable
        ``on_connect(ticket, peer)`` returns whether the ticket is valid.

    Raises
    ------
    PortInUseError
        No port of the range is free.
    """
    for port in range(int(settings["first"]), int(settings["last"]) + 1):
        server = grpc.aio.server(options=OPTIONS)
        guards: list[ConnectionGuard] = []

        def connected(ticket: str, peer: str, guards: list[ConnectionGuard] = guards) -> None:
            if on_connect(ticket, peer):
                for guard in guards:
                    guard.authenticated(peer)

        server.add_generic_rpc_handlers((attach_handler(serve, connected),))
        target = join_address(str(settings["host"]), port)
        try:
            if "key" in settings:
                pair = [(settings["key"].encode(), settings["certificate"].encode())]
                server.add_secure_port(target, grpc.ssl_server_credentials(pair))
            else:
                server.add_insecure_port(target)
        except RuntimeError:
            continue
        await server.start()
        guards.append(ConnectionGuard(port))
        guards[0].__enter__()
        _open.append(server)
        return port
    raise PortInUseError(
        f"no port from {settings['first']} to {settings['last']} is free", hint="give the server a wider --data-ports"
    )
