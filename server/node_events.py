"""What nodes report or do, and what it means for their runs: connections, losses, exits of programs, log lines."""

from __future__ import annotations

import asyncio
import logging

from ..core.bounds import MAX_ERROR, MAX_TRACEBACK, cut, cut_start
from ..core.errors import RefusedError, StorageError
from ..proto import control_pb2 as pb
from .credentials import Credentials
from .registry import Node, Registry
from .run import Event, Run
from .run_repository import RunRepository

_log = logging.getLogger(__name__)


class NodeEvents:
    """Passes events of nodes on to the runs that they take part in.

    Parameters
    ----------
    registry : Registry
    runs : RunRepository
    credentials : Credentials
        Stores when a node was last seen.
    """

    def __init__(self, registry: Registry, runs: RunRepository, credentials: Credentials) -> None:
        self._registry, self._runs, self._credentials = registry, runs, credentials

    def connected(self, node: Node) -> None:
        """Reconcile the programs that a newly connected node reports with those that it should be running."""
        self.save_last_seen(node)
        running = {program.run_id: program.epoch for program in node.hello.running}
        for run_id, epoch in running.items():
            run = self._runs.find(run_id)
            if run is None or run.programs.get(node.name) != epoch:
                stop = pb.StopProgram(run_id=run_id, epoch=epoch, reason="the server has no such program")
                self._registry.command(node, pb.NodeCommand(stop=stop))
        for run in self._runs:
            epoch = run.programs.get(node.name, -1)
            if epoch >= 0 and running.get(run.id) != epoch:
                # The exit event with the actual reason may follow right after the hello.
                asyncio.get_running_loop().call_later(1.0, self._program_missing, run, node.name, epoch)
            elif epoch < 0 and node.run == run.id:
                run.inbox.put_nowait(Event("returned", node.name, run.epoch))

    def save_last_seen(self, node: Node) -> None:
        """Store when the node was last seen; a failed write is only logged."""
        try:
            self._credentials.update_last_seen(node.name, node.seen_wall)
        except StorageError as error:
            _log.warning("cannot store when node %s was last seen: %s", node.name, error)

    def _program_missing(self, run: Run, node: str, epoch: int) -> None:
        if run.programs.get(node) == epoch:
            del run.programs[node]
            run.inbox.put_nowait(Event("lost", node, epoch, text="its agent reconnected without the program"))

    def lost(self, node: Node) -> None:
        """Handle a node that missed its heartbeats, left or was revoked."""
        run = self._runs.find(node.run) if node.run else None
        if run is not None and run.programs.pop(node.name, None) is not None:
            run.inbox.put_nowait(Event("lost", node.name, run.epoch, text=node.reason))

    def program_exited(self, node: Node, exited: pb.ProgramExited) -> None:
        """Handle the exit of a node program; duplicates of a (run, epoch) are ignored."""
        run = self._runs.find(exited.run_id)
        if run is None or run.programs.get(node.name) != exited.epoch:
            return
        del run.programs[node.name]
        details = {"traceback": cut_start(exited.traceback, MAX_TRACEBACK)}
        event = Event("exited", node.name, exited.epoch, exited.exit_code, cut(exited.error, MAX_ERROR), details)
        run.inbox.put_nowait(event)

    def log_lines(self, node: Node, lines: pb.LogLines) -> None:
        """Append lines from a node to the log of a run that it takes part in.

        Raises
        ------
        RefusedError
            The node does not take part in the run.
        """
        run = self._runs.find(lines.run_id)
        if run is None or node.name not in run.nodes:
            raise RefusedError(f"node {node.name} does not take part in run '{lines.run_id[:40]}'")
        run.log.write(node.name, lines.lines)  # one append of bounded size, whatever the message holds
        run.notify()

    def dismiss(self, node: Node, reason: str) -> None:
        """Send a node away that exceeded its budget; its program counts as lost."""
        self._registry.command(node, pb.NodeCommand(goodbye=pb.Goodbye(reason=reason)))
        self._registry.leave(node, f"dismissed: {reason}")
        self.lost(node)
