"""What the data connections of runs carried on their sockets, beside the ledger, where the system tells it."""

from __future__ import annotations

import asyncio

from ..core.errors import StorageError
from ..runs.directory import RunDirectory
from ..wire.tcp_info import Accepted, SocketMeter, peer_of
from .run import Run


class SocketCount:
    """Counts each data connection from when it is dialled until its run's epoch has ended; used in one asyncio loop."""

    def __init__(self) -> None:
        self._meter = SocketMeter.open()
        self._node_of: dict[str, dict[Accepted, str]] = {}
        if self._meter is not None:
            asyncio.get_running_loop().add_reader(self._meter, self._meter.drain)

    def dialled(self, run_id: str, node: str, port: int, peer: str) -> None:
        """A node's data connection came in at ``port`` from gRPC's ``peer``."""
        if self._meter is not None:
            connection = Accepted(port, peer_of(peer))
            self._node_of.setdefault(run_id, {})[connection] = node
            self._meter.watch(connection)

    def write(self, run: Run) -> None:
        """Write down what the connections of the run's present epoch carried."""
        node_of = self._node_of.pop(run.id, {})
        if self._meter is None or not node_of:
            return
        directory = RunDirectory(run.directory)
        try:
            for connection, size in self._meter.take(node_of).items():
                directory.add_sockets(node_of[connection], run.epoch, size.up, size.down)
        except StorageError as error:  # a figure beside the ledger must not end a run
            run.log.write("server", [str(error)])

    def close(self) -> None:
        """Stop counting."""
        if self._meter is not None:
            asyncio.get_running_loop().remove_reader(self._meter)
            self._meter.close()
