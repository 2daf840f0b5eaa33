"""What a supervisor, and whoever works for it, asks of the orchestrator."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from ..proto import control_pb2 as pb
from .run import Run


class SupervisorHost(Protocol):
    """What a supervisor needs of the orchestrator."""

    async def assign(self, run: Run) -> None:
        """Return once the run has its nodes; its ``reason`` says what it waits for meanwhile."""

    def launch_parameters(self, run: Run) -> dict[str, Any]:
        """What the run process is told at its start, but for tickets."""

    def start_program(self, run: Run, node: str, command: pb.StartProgram) -> bool:
        """Tell a node to start; False if it cannot be told."""

    def is_connected(self, node: str) -> bool:
        """Whether a node can be told."""

    def stop_programs(self, run: Run, reason: str) -> None:
        """Tell every node of the run to stop its program."""

    def open_door(self, ticket: str, run: Run, node: str, socket: Path) -> None:
        """Let whoever holds ``ticket`` through to the run process."""

    def close_doors(self, run: Run) -> None:
        """Forget the run's tickets."""

    def data_dialled(self, run_id: str, node: str, port: int, peer: str) -> None:
        """A node's data connection came in at ``port`` from ``peer``."""

    def count_sockets(self, run: Run) -> None:
        """Write down what the data connections of the epoch carried."""

    def save(self, run: Run) -> None:
        """Store the run's state and tell followers."""
