"""The one port: TLS, the three services behind it, and nothing else."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

import grpc
import grpc.aio

from ..core.address import is_loopback, join_address
from ..core.errors import ConfigError, PortInUseError, RefusedError
from ..core.files import write_file
from ..proto.control_pb2_grpc import add_AdminServicer_to_server, add_NodesServicer_to_server
from .admin_service import AdminService
from .data_service import Route, data_handler
from .nodes_service import NodesService

if TYPE_CHECKING:
    from .orchestrator import Orchestrator

_log = logging.getLogger(__name__)

_OPTIONS: list[tuple[str, int]] = [
    ("grpc.so_reuseport", 0),  # or a second server would silently share the port
    ("grpc.max_receive_message_length", 8 << 20),
    ("grpc.max_concurrent_streams", 64),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
]


class GrpcServer:
    """Listens for one orchestrator.

    Attributes
    ----------
    number : int
        The port in use, once open.
    address : str
        What to dial from this machine.
    """

    def __init__(self, orchestrator: Orchestrator) -> None:
        self._orchestrator = orchestrator
        self._server: grpc.aio.Server | None = None
        self.number = 0
        self.address = ""

    async def open(self) -> None:
        """Start to listen.

        Raises
        ------
        PortInUseError
            Another program listens there.
        RefusedError
            Without TLS off loopback.
        ConfigError
            Certificate and key do not fit.
        """
        options, identity = self._orchestrator.options, self._orchestrator.identity
        if options.insecure and not is_loopback(options.host):
            raise RefusedError(
                f"will not listen on {options.host} without TLS",
                hint="leave --insecure out, or use --host 127.0.0.1",
            )
        server = grpc.aio.server(options=_OPTIONS)
        add_NodesServicer_to_server(NodesService(self._orchestrator), server)
        add_AdminServicer_to_server(AdminService(self._orchestrator), server)
        server.add_generic_rpc_handlers((data_handler(self._orchestrator.doors, self._dialled),))
        target = join_address(options.host, options.port)
        try:
            if identity.pair is None:
                self.number = server.add_insecure_port(target)
            else:
                pair = [(identity.pair.key, identity.pair.certificate)]
                self.number = server.add_secure_port(target, grpc.ssl_server_credentials(pair))
        except RuntimeError as error:
            if "credentials" in str(error).lower():
                raise ConfigError("the certificate and its key do not fit together") from error
            raise PortInUseError(
                f"cannot listen on {target}: another program does, or this machine has no such address",
                hint="choose another --port, or stop the other program",
            ) from error
        await server.start()
        self._server = server
        everywhere = options.host in ("0.0.0.0", "::", "")  # noqa: S104 - compared, not bound
        self.address = join_address("127.0.0.1" if everywhere else options.host, self.number)
        write_file(identity.home / "address", self.address.encode() + b"\n")
        _log.info("listening on %s", join_address(options.host, self.number))

    def _dialled(self, door: Route, peer: str) -> None:
        self._orchestrator.data_dialled(door.run_id, door.node, self.number, peer)

    async def close(self) -> None:
        """Stop to listen; calls in flight get half a second."""
        with contextlib.suppress(FileNotFoundError):
            (self._orchestrator.identity.home / "address").unlink()
        if self._server is not None:
            await self._server.stop(0.5)
