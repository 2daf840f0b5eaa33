"""Counts the bytes of data connections at the socket level, where the operating system reports them."""

from __future__ import annotations

import asyncio

from ..core.errors import StorageError
from ..runs.directory import RunDirectory
from ..wire.tcp_info import AcceptedConnection, SocketMeter, parse_peer
from .run import Run


class SocketCount:
    """Counts data connections from when they are accepted until the restart epoch ends; use from one event loop."""

    def __init__(self) -> None:
        self._meter = SocketMeter.open()
        self._node_of: dict[str, dict[AcceptedConnection, str]] = {}
        if self._meter is not None:
            asyncio.get_running_loop().add_reader(self._meter, self._meter.drain)

    def connected(self, run_id: str, node: str, port: int, peer: str) -> None:
        """Count a data connection of ``node``, accepted on ``port`` from ``peer`` (in gRPC's notation)."""
        if self._meter is not None:
            connection = AcceptedConnection(port, parse_peer(peer))
            self._node_of.setdefault(run_id, {})[connection] = node
            self._meter.watch(connection)

    def write(self, run: Run) -> None:
        """Write the bytes of the current epoch's connections to the run directory."""
        node_of = self._node_of.pop(run.id, {})
        if self._meter is None or not node_of:
            return
        directory = RunDirectory(run.directory)
        try:
            for connection, size in self._meter.take(node_of).items():
                directory.add_socket_bytes(node_of[connection], run.epoch, size.up, size.down)
        except StorageError as error:  # not worth failing the run
            run.log.write("server", [str(error)])

    def close(self) -> None:
        """Stop counting."""
        if self._meter is not None:
            asyncio.get_running_loop().remove_reader(self._meter)
            self._meter.close()
