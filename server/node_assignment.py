"""Assigns nodes to runs: cohorts to waiting runs, and free nodes to runs in progress that they may join."""

from __future__ import annotations

from collections.abc import Callable

from ..core.nodes import Capability
from .profiles import profile_of
from .registry import Node, Registry
from .role_requests import demand_of, demands_of
from .run import Event, Run
from .run_repository import RunRepository
from .scheduler import Candidate, Choice, choose

_CAPABILITIES: tuple[Capability, ...] = ("torch", "onnxruntime", "accelerator")


class NodeAssignment:
    """Applies the scheduler's choices to runs and nodes.

    Parameters
    ----------
    registry : Registry
    runs : RunRepository
    is_schedulable : callable
        Returns whether a run has a supervisor and approved code.
    """

    def __init__(self, registry: Registry, runs: RunRepository, is_schedulable: Callable[[Run], bool]) -> None:
        self._registry = registry
        self._runs = runs
        self._is_schedulable = is_schedulable

    def schedule(self) -> None:
        """Assign nodes to waiting runs, oldest first; then let nodes that are still free join runs in progress."""
        for run in self._runs.waiting():
            if run.assigned.is_set() or not self._is_schedulable(run):
                continue
            choice = self._choose(run)
            if choice.nodes:
                run.cohort = dict(choice.nodes)
                for name in choice.nodes:
                    self._occupy(name, run)
                run.assigned.set()
            elif choice.reason != run.reason:
                run.reason = choice.reason
                run.notify()
        for run in self._runs:
            if run.may_join and run.state == "running" and self._is_schedulable(run):
                self._let_join(run)

    def _choose(self, run: Run) -> Choice:
        candidates = [self._candidate(node, run) for node in self._registry if node.state != "revoked"]
        available = {c.name for c in candidates if not c.obstacle and not c.busy_with}
        cohort = run.cohort if run.epoch else {}
        return choose(demands_of(run.workload, run.roles, run.requests, cohort, available), candidates)

    def _let_join(self, run: Run) -> None:
        """Give free nodes to a run in progress, up to the number that its submitter allows for each role."""
        for role in run.roles:
            count = sum(played == role.name for played in run.cohort.values())
            room = run.may_grow_to(role.name) - count
            if room <= 0:
                continue
            demand = demand_of(role, run.workload, 1)
            free = sorted(
                node.name
                for node in self._registry
                if node.name not in run.cohort and not demand.obstacle(self._candidate(node, run))
            )
            for name in free[:room]:
                run.cohort[name] = role.name
                self._occupy(name, run)
                self._runs.save(run)
                run.inbox.put_nowait(Event("joining", name, run.epoch))

    def _occupy(self, name: str, run: Run) -> None:
        node = self._registry.get(name)
        assert node is not None
        node.run = run.id

    @staticmethod
    def _candidate(node: Node, run: Run) -> Candidate:
        obstacle = "lost" if node.state == "lost" else "" if node.commands is not None else "not connected"
        if node.hello.own_runs_only and run.requested_nodes != (node.name,):
            obstacle = obstacle or "takes part only in runs that it opens itself"
        if node.contested and node.run != run.id:
            obstacle = "contested: its key is used in two places"
        if node.state == "revoked":
            obstacle = "revoked"
        busy = "" if node.run == run.id else node.run
        profile = profile_of(node)
        offers = frozenset(c for c in _CAPABILITIES if profile.offers(c))
        reported = node.hello.profile
        return Candidate(
            node.name,
            frozenset(node.hello.data),
            dict(node.hello.labels),
            offers,
            # One that opens runs itself, and one of before, report no methods and no command.
            frozenset(reported.packages) if reported.install else None,
            frozenset(reported.methods) if reported.methods else None,
            reported.install,
            reported.memory_bytes,
            busy,
            obstacle,
        )
