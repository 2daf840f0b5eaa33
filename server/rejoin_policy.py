"""Restarts the programs of lost nodes during a run, for methods that continue without them: the supervisor's side.

A restarted program gets a restart epoch and a ticket of its own. The supervisor first sends ``expect`` to the run
process; once that has answered ``expecting``, it sends the start command to the node. The run process's side is in
:mod:`farshore.server.rejoin`.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable

from ..core.processes import Child
from .restart_limit import RestartLimit
from .run import Event, Run
from .supervisor_host import SupervisorHost

#: Identical failures in a row, without progress in between, after which a program is not restarted.
_MAX_SAME_FAILURES = 3


class RejoinPolicy:
    """Decides which lost nodes of a run may rejoin, and restarts their programs.

    Parameters
    ----------
    run : Run
    host : SupervisorHost
    limit : RestartLimit
        Limits the restarts of each node's program.
    """

    def __init__(self, run: Run, host: SupervisorHost, limit: RestartLimit) -> None:
        self._run = run
        self._host = host
        self._limit = limit
        #: Times of the restarts, by node.
        self._restarts: dict[str, deque[float]] = {}
        #: Restart epoch of the program that the run process was sent ``expect`` for, by node.
        self._expected: dict[str, int] = {}
        self._excluded: set[str] = set()
        #: Last error, the run's progress at that time, and the number of such failures in a row, by node.
        self._failures: dict[str, tuple[str, int, int]] = {}

    def reset(self) -> None:
        """Clear pending and excluded nodes when all programs restart; earlier restarts still count for the limit."""
        self._expected.clear()
        self._excluded.clear()

    def request_restart(self, node: str, child: Child) -> None:
        """Ask the run process to expect a new program of a lost node, if the node is connected and may rejoin."""
        run = self._run
        pending = node in self._excluded or node in self._expected or node in run.programs
        if pending or not self._host.is_connected(node):
            return
        if not self._limit.allows(self._restarts.setdefault(node, deque())):
            times = self._limit.per_hour
            self.exclude(node, f"node {node}: its program was restarted {times} times within an hour", child)
            return
        run.epoch += 1  # saved before it is used, so that an epoch is never used twice
        self._host.save(run)
        self._expected[node] = run.epoch
        ticket = secrets.token_urlsafe(24)
        info = self._host.node_info(run, node).to_json()
        child.send({"type": "expect", "node": node, "ticket": ticket, "epoch": run.epoch, "info": info})

    def fails_repeatedly(self, node: str, error: str) -> bool:
        """Record a failure of a node's program; returns whether it failed too often in the same way to be restarted."""
        last, done, times = self._failures.get(node, ("", -1, 0))
        times = times + 1 if (last, done) == (error, self._run.done) else 1
        self._failures[node] = error, self._run.done, times
        return times >= _MAX_SAME_FAILURES

    def start_program(self, event: Event, child: Child, start: Callable[[str, str, int], bool]) -> None:
        """Start the program of a node once the run process expects it.

        Parameters
        ----------
        event : Event
            The ``expecting`` event.
        child : Child
            The run process.
        start : callable
            ``start(node, ticket, epoch)``; returns False if the node is not reachable.
        """
        node, ticket, epoch = (event.details[name] for name in ("node", "ticket", "epoch"))
        if self._expected.pop(node, None) == epoch:
            self._run.log.write("server", [f"node {node}: starting a new program"])
            if not start(node, ticket, epoch):
                child.send(
                    {"type": "lost", "node": node, "reason": f"node {node} disconnected before its program could start"}
                )

    def exclude(self, node: str, reason: str, child: Child) -> None:
        """Continue without a node permanently."""
        self._excluded.add(node)
        self._run.log.write("server", [f"{reason}; continuing without it permanently"])
        child.send({"type": "lost", "node": node, "reason": reason, "for_good": True})
