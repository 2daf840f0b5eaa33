"""The interface through which a supervisor uses the orchestrator."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from ..core.nodes import NodeInfo
from ..proto import control_pb2 as pb
from .run import Run


class SupervisorHost(Protocol):
    """Services of the orchestrator for a supervisor."""

    async def assign(self, run: Run) -> None:
        """Wait until the run has its nodes; its ``reason`` says what it waits for."""

    def launch_parameters(self, run: Run) -> dict[str, Any]:
        """Return the launch parameters of the run process, without the tickets."""

    def node_info(self, run: Run, name: str) -> NodeInfo:
        """Return role, shard, labels and profile of a node of a run."""

    def start_program(self, run: Run, node: str, command: pb.StartProgram) -> bool:
        """Send a start command to a node; returns False if the node is not reachable."""

    def is_connected(self, node: str) -> bool:
        """Return whether a node can receive commands."""

    def stop_programs(self, run: Run, reason: str) -> None:
        """Send a stop command to every node of the run."""

    def add_route(self, ticket: str, run: Run, node: str, socket: Path) -> None:
        """Route connections with ``ticket`` to the run process at ``socket``."""

    def remove_routes(self, run: Run) -> None:
        """Remove the routes of the run."""

    def data_connected(self, run_id: str, node: str, port: int, peer: str) -> None:
        """Record that a data connection of ``node`` was accepted on ``port`` from ``peer``."""

    def write_socket_counts(self, run: Run) -> None:
        """Write the socket byte counts of the current epoch to the run directory."""

    def save(self, run: Run) -> None:
        """Store the run's state and notify its followers."""
