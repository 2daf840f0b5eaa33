"""Nodes that a run goes on without, and that come back by themselves: the supervisor's side.

A new program of such a node gets an epoch and a ticket of its own. The run process is told to expect it first; when it
says that it does, the node is told to start. What happens then in the run process is in ``returning.py``.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable

from ..core.processes import Child
from .restart_limit import RestartLimit
from .run import Event, Run
from .supervisor_host import SupervisorHost

#: A program that dies so often in a row of one error, and nothing was done in between, would for ever.
_SAME_DEATHS = 3


class RejoinPolicy:
    """Who of a run's nodes is on the way back, and who stays out.

    Parameters
    ----------
    run : Run
    surroundings : Surroundings
    limit : RestartLimit
        How often each node's program is started again.
    """

    def __init__(self, run: Run, surroundings: SupervisorHost, limit: RestartLimit) -> None:
        self._run = run
        self._around = surroundings
        self._limit = limit
        #: When each node's program was started again.
        self._returns: dict[str, deque[float]] = {}
        #: The epoch of the program that the run process is told to expect.
        self._expected: dict[str, int] = {}
        self._out: set[str] = set()
        #: What each node's program died of last, how far the run was, and how often that came in a row.
        self._died: dict[str, tuple[str, int, int]] = {}

    def forget(self) -> None:
        """All programs begin anew, so nobody is on the way and nobody is out; past returns still count."""
        self._expected.clear()
        self._out.clear()

    def bring_back(self, node: str, child: Child) -> None:
        """Have the run process expect a new program of a node that it goes on without, if there can be one."""
        run = self._run
        known = node in self._out or node in self._expected or node in run.programs
        if known or not self._around.is_connected(node):
            return
        if not self._limit.allows(self._returns.setdefault(node, deque())):
            times = self._limit.per_hour
            self.keep_out(node, f"node {node}: its program was started again {times} times within an hour", child)
            return
        run.epoch += 1  # saved first: an epoch is never used twice
        self._around.save(run)
        self._expected[node] = run.epoch
        ticket = secrets.token_urlsafe(24)
        child.send({"type": "expect", "node": node, "ticket": ticket, "epoch": run.epoch})

    def is_broken(self, node: str, error: str) -> bool:
        """Note what a node's program died of; whether it is of no use to start it again."""
        last, done, times = self._died.get(node, ("", -1, 0))
        times = times + 1 if (last, done) == (error, self._run.done) else 1
        self._died[node] = error, self._run.done, times
        return times >= _SAME_DEATHS

    def start_again(self, event: Event, child: Child, start: Callable[[str, str, int], bool]) -> None:
        """Start the program that the run process now expects.

        Parameters
        ----------
        event : Event
            ``expecting``.
        child : Child
            The run process.
        start : callable
            ``start(node, ticket, epoch)``: False if the node cannot be told.
        """
        node, ticket, epoch = (event.details[name] for name in ("node", "ticket", "epoch"))
        if self._expected.pop(node, None) == epoch:
            self._run.log.write("server", [f"node {node}: starting its program again"])
            if not start(node, ticket, epoch):
                child.send({"type": "lost", "node": node, "reason": f"node {node} went away before it could start"})

    def keep_out(self, node: str, reason: str, child: Child) -> None:
        """Go on without a node for good."""
        self._out.add(node)
        self._run.log.write("server", [f"{reason}; going on without it for good"])
        child.send({"type": "lost", "node": node, "reason": reason, "for_good": True})
