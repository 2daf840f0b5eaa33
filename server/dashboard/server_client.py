"""A read-only gRPC client of the running server, for live data: connected nodes and progress of open runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import grpc
import grpc.aio

from ...core.address import proxy_options
from ...core.errors import NotFoundError, StorageError
from ...core.paths import LocalServer
from ...proto import control_pb2 as pb
from ...proto.control_pb2_grpc import AdminStub
from ..certificates import SERVER_NAME

_TIMEOUT = 5.0
#: Maximum number of runs that are requested at a time.
_MAX_RUNS = 50


class ServerClient:
    """Client of the server that runs with a given home directory, if there is one. For one asyncio loop.

    Parameters
    ----------
    home : Path
        Home directory of the server.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._local_server: LocalServer | None = None
        self._channel: grpc.aio.Channel | None = None
        self._stub: AdminStub | None = None

    async def nodes(self) -> Sequence[pb.NodeInfo] | None:
        """List all nodes that the server knows; None if no server responds."""
        if not await self._connect():
            return None
        assert self._stub is not None
        found: list[pb.NodeInfo] = []
        token = ""
        try:
            while True:
                request = pb.ListRequest(page_token=token)
                reply = await self._stub.ListNodes(request, metadata=self._metadata(), timeout=_TIMEOUT)
                found += reply.nodes
                token = reply.next_page_token
                if not token:
                    return found
        except grpc.aio.AioRpcError:
            return None

    async def runs(self, ids: Iterable[str]) -> dict[str, pb.RunInfo]:
        """Get summaries of runs by id, at most one page; empty if the server does not respond."""
        wanted = list(ids)[:_MAX_RUNS]
        if not wanted or not await self._connect():
            return {}
        assert self._stub is not None
        try:
            request = pb.ListRequest(ids=wanted)
            found = await self._stub.ListRuns(request, metadata=self._metadata(), timeout=_TIMEOUT)
        except grpc.aio.AioRpcError:
            return {}
        return {run.id: run for run in found.runs}

    async def close(self) -> None:
        """Close the channel."""
        if self._channel is not None:
            await self._channel.close()
            self._channel = self._stub = None

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        assert self._local_server is not None
        return (("farshore-admin", self._local_server.token),)

    async def _connect(self) -> bool:
        """Connect to the server that runs now, if any; a restarted server may listen on another port."""
        try:
            server = LocalServer.read(self._home)
        except (NotFoundError, StorageError):
            return False
        if server == self._local_server and self._channel is not None:
            return True
        await self.close()
        self._local_server = server
        if server.certificate is None:
            self._channel = grpc.aio.insecure_channel(server.address, proxy_options(server.address))
        else:
            credentials = grpc.ssl_channel_credentials(root_certificates=server.certificate)
            names = ("grpc.ssl_target_name_override", "grpc.default_authority")
            options = [*((name, SERVER_NAME) for name in names), *proxy_options(server.address)]
            self._channel = grpc.aio.secure_channel(server.address, credentials, options=options)
        self._stub = AdminStub(self._channel)
        return True
