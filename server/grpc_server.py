"""The server's single gRPC port: TLS and the services ``Nodes``, ``Admin`` and data."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

import grpc
import grpc.aio

from ..core.address import is_loopback, join_address
from ..core.errors import ConfigError, PortInUseError, RefusedError
from ..core.files import write_file
from ..proto.control_pb2_grpc import add_AdminServicer_to_server, add_NodesServicer_to_server
from .addresses import on_all_interfaces, reachable_addresses
from .admin_service import AdminService
from .connection_guard import ConnectionGuard
from .data_service import Route, data_handler
from .nodes_service import NodesService

if TYPE_CHECKING:
    from .orchestrator import Orchestrator

_log = logging.getLogger(__name__)

_OPTIONS: list[tuple[str, int]] = [
    ("grpc.so_reuseport", 0),  # otherwise a second server would silently share the port
    ("grpc.max_receive_message_length", 8 << 20),
    ("grpc.max_concurrent_streams", 64),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
    # A connection must complete its handshakes, and one without calls is closed; see also ConnectionGuard.
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_connection_idle_ms", 600_000),
]


#: Seconds for active calls to end with the runs, a little more than :meth:`.Orchestrator.stop` takes.
_CLOSE_SECONDS = 4.5


class GrpcServer:
    """Serves one orchestrator over gRPC.

    Attributes
    ----------
    port : int
        The port in use, once open.
    address : str
        ``host:port`` to connect to from this machine, once open.
    addresses : tuple of str
        ``host:port`` for nodes to connect to, once open; see :func:`~farshore.server.addresses.reachable_addresses`.
    """

    def __init__(self, orchestrator: Orchestrator) -> None:
        self._orchestrator = orchestrator
        self._server: grpc.aio.Server | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._guard: ConnectionGuard | None = None
        self.port = 0
        self.address = ""
        self.addresses: tuple[str, ...] = ()

    async def open(self) -> None:
        """Start listening.

        Raises
        ------
        PortInUseError
            Another program listens on the port.
        RefusedError
            TLS is off and the host is not loopback.
        ConfigError
            The certificate does not match its key.
        """
        options, identity = self._orchestrator.options, self._orchestrator.identity
        if options.insecure and not is_loopback(options.host):
            raise RefusedError(
                f"cannot listen on {options.host} without TLS",
                hint="remove --insecure, or use --host 127.0.0.1",
            )
        server = grpc.aio.server(options=_OPTIONS)
        add_NodesServicer_to_server(NodesService(self._orchestrator, self._authenticated), server)
        admin = AdminService(self._orchestrator, lambda: self.addresses, self._authenticated)
        add_AdminServicer_to_server(admin, server)
        data = data_handler(self._orchestrator.routes, self._on_data_connection, lambda: self._is_short)
        server.add_generic_rpc_handlers((data,))
        target = join_address(options.host, options.port)
        try:
            if identity.pair is None:
                self.port = server.add_insecure_port(target)
            else:
                pair = [(identity.pair.key, identity.pair.certificate)]
                self.port = server.add_secure_port(target, grpc.ssl_server_credentials(pair))
        except RuntimeError as error:
            if "credentials" in str(error).lower():
                raise ConfigError("the certificate does not match its key") from error
            raise PortInUseError(
                f"cannot listen on {target}: the port is in use, or this machine has no such address",
                hint="choose another --port, or stop the other program",
            ) from error
        await server.start()
        self._server = server
        self._guard = ConnectionGuard(self.port)
        self._guard.__enter__()
        self.address = join_address("127.0.0.1" if on_all_interfaces(options.host) else options.host, self.port)
        self.addresses = reachable_addresses(options.host, self.port, options.hostnames)
        write_file(identity.home / "address", self.address.encode() + b"\n")
        _log.info("listening on %s", join_address(options.host, self.port))

    @property
    def _is_short(self) -> bool:
        return self._guard is not None and self._guard.short

    def _authenticated(self, peer: str) -> None:
        if self._guard is not None:
            self._guard.authenticated(peer)

    def _on_data_connection(self, route: Route, peer: str) -> None:
        self._authenticated(peer)
        self._orchestrator.data_connected(route.run_id, route.node, self.port, peer)

    async def stop_listening(self) -> None:
        """Accept no more connections and calls; active calls go on for :data:`_CLOSE_SECONDS`."""
        with contextlib.suppress(FileNotFoundError):
            (self._orchestrator.identity.home / "address").unlink()
        if self._server is not None:
            self._stopping = asyncio.create_task(self._server.stop(_CLOSE_SECONDS), name="stop listening")
            await asyncio.sleep(0)  # lets it begin

    async def close(self) -> None:
        """Give active calls half a second to finish, and close."""
        if self._server is not None:
            await self._server.stop(0.5)
        if self._stopping is not None:
            await self._stopping
        if self._guard is not None:
            await asyncio.to_thread(self._guard.__exit__)
            self._guard = None
