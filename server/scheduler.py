"""The scheduler: a pure function that chooses the nodes of a run, or explains why it has to wait."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node, as input of the scheduler.

    Attributes
    ----------
    name : str
    data : frozenset of str
        Names of the data sets on the node.
    busy_with : str
        Id of the run that the node is assigned to, or empty.
    obstacle : str
        Why the node is not available for this run (``lost``, ``not connected``); empty if it is.
    """

    name: str
    data: frozenset[str] = frozenset()
    busy_with: str = ""
    obstacle: str = ""


@dataclass(frozen=True, slots=True)
class Demand:
    """Requirements of a run.

    Attributes
    ----------
    count : int
        Number of nodes, if ``names`` is empty.
    names : tuple of str
        Nodes requested by name.
    data : tuple of tuple of str
        Data sets that each node must have; for each, the alternative names.
    """

    count: int
    names: tuple[str, ...] = ()
    data: tuple[tuple[str, ...], ...] = ()

    def missing_data(self, held: frozenset[str]) -> str:
        """Describe the first required data set that is not in ``held``; empty if none is missing."""
        return next((_either(names) for names in self.data if not held.intersection(names)), "")


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen cohort, in order; or the reason why the run has to wait."""

    nodes: tuple[str, ...] = ()
    reason: str = ""


def choose(demand: Demand, candidates: Sequence[Candidate]) -> Choice:
    """Choose a cohort from ``candidates`` (in order of preference).

    Nodes requested by name keep their order, so that a resumed run has the same cohort. Otherwise free nodes are taken
    in name order, so that the same free nodes always give the same cohort.
    """
    obstacles = {c.name: _obstacle(demand, c) for c in candidates}
    if demand.names:
        missing = tuple(n for n in demand.names if obstacles.get(n, "never joined"))
        if not missing:
            return Choice(demand.names)
        why = ", ".join(f"{n} ({obstacles.get(n, 'never joined')})" for n in missing)
        return Choice(reason=f"waiting for {why}")
    free = sorted(n for n, obstacle in obstacles.items() if not obstacle)
    if len(free) >= demand.count:
        return Choice(tuple(free[: demand.count]))
    condition = f" with data {' and '.join(map(_either, demand.data))}" if demand.data else ""
    noun = "node" if demand.count == 1 else "nodes"
    reason = f"waiting for {demand.count - len(free)} of {demand.count} {noun}{condition}"
    listed = [f"{n} (free)" if not o else f"{n} ({o})" for n, o in sorted(obstacles.items())]
    if not listed:
        return Choice(reason=f"{reason}; no node has joined")
    return Choice(reason=f"{reason}; known: {', '.join(_shorten(listed))}")


def _obstacle(demand: Demand, candidate: Candidate) -> str:
    if candidate.obstacle:
        return candidate.obstacle
    if missing := demand.missing_data(candidate.data):
        return f"no data {missing}"
    if candidate.busy_with:
        return f"busy with run {candidate.busy_with}"
    return ""


def _either(names: Sequence[str]) -> str:
    return " or ".join(f"'{name}'" for name in names)


def _shorten(entries: list[str], limit: int = 8) -> list[str]:
    return entries if len(entries) <= limit else [*entries[:limit], f"{len(entries) - limit} more"]
