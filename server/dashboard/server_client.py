"""Asks a running server what only it knows: who is connected, and how far its runs are. Only calls that read."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from pathlib import Path

import grpc
import grpc.aio

from ...core.errors import NotFoundError, StorageError
from ...core.paths import LocalServer
from ...proto import control_pb2 as pb
from ...proto.control_pb2_grpc import AdminStub
from ..certificates import SERVER_NAME

_SECONDS = 5.0
#: Open runs that are asked for at a time.
_AT_ONCE = 50


class ServerClient:
    """The server that has a home, while one runs; inside one asyncio loop.

    Parameters
    ----------
    home : Path
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._known: LocalServer | None = None
        self._channel: grpc.aio.Channel | None = None
        self._stub: AdminStub | None = None

    async def nodes(self) -> Sequence[pb.NodeInfo] | None:
        """Every node the server knows; None where none answers."""
        if not await self._dial():
            return None
        assert self._stub is not None
        try:
            found = await self._stub.ListNodes(pb.ListRequest(), metadata=self._metadata(), timeout=_SECONDS)
        except grpc.aio.AioRpcError:
            return None
        return list(found.nodes)

    async def runs(self, ids: Iterable[str]) -> dict[str, pb.RunInfo]:
        """What the server says of some runs; those that it does not know, or cannot tell of now, are left out."""
        if not await self._dial():
            return {}
        found = await asyncio.gather(*(self._run(run_id) for run_id in list(ids)[:_AT_ONCE]))
        return {run.id: run for run in found if run is not None}

    async def close(self) -> None:
        """Hang up."""
        if self._channel is not None:
            await self._channel.close()
            self._channel = self._stub = None

    async def _run(self, run_id: str) -> pb.RunInfo | None:
        assert self._stub is not None
        try:
            found: pb.RunInfo = await self._stub.ShowRun(
                pb.RunRef(id=run_id), metadata=self._metadata(), timeout=_SECONDS
            )
        except grpc.aio.AioRpcError:
            return None
        return found

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        assert self._known is not None
        return (("farshore-admin", self._known.token),)

    async def _dial(self) -> bool:
        """Look who has the home now: a server that was started again may listen elsewhere."""
        try:
            server = LocalServer.read(self._home)
        except (NotFoundError, StorageError):
            return False
        if server == self._known and self._channel is not None:
            return True
        await self.close()
        self._known = server
        if server.certificate is None:
            self._channel = grpc.aio.insecure_channel(server.address)
        else:
            credentials = grpc.ssl_channel_credentials(root_certificates=server.certificate)
            names = ("grpc.ssl_target_name_override", "grpc.default_authority")
            options = [(name, SERVER_NAME) for name in names]
            self._channel = grpc.aio.secure_channel(server.address, credentials, options=options)
        self._stub = AdminStub(self._channel)
        return True
