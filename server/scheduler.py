"""Chooses nodes for waiting runs. One pure function; every answer that is not a cohort is a reason in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """What the scheduler sees of a node.

    ``obstacle`` says why it cannot take any run (``lost``, ``other version``), empty if it can.
    """

    name: str
    data: frozenset[str] = frozenset()
    busy_with: str = ""
    obstacle: str = ""


@dataclass(frozen=True, slots=True)
class Demand:
    """What a run needs: these nodes by name, or any ``count``.

    ``data`` are the data sets that each of them must hold; for each, the names under which it will do.
    """

    count: int
    names: tuple[str, ...] = ()
    data: tuple[tuple[str, ...], ...] = ()

    def lacks(self, held: frozenset[str]) -> str:
        """The first data set that a node holding ``held`` lacks, in words; empty = none."""
        return next((_either(names) for names in self.data if not held.intersection(names)), "")


@dataclass(frozen=True, slots=True)
class Choice:
    """The cohort, in order, or why there is none yet."""

    nodes: tuple[str, ...] = ()
    reason: str = ""


def choose(demand: Demand, candidates: Sequence[Candidate]) -> Choice:
    """Choose a cohort from ``candidates`` (in order of preference).

    Nodes asked for by name keep their order, so that a resumed run has the same cohort; others are taken in name
    order, so that the same free nodes always give the same cohort.
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
    wanted = f" with data {' and '.join(map(_either, demand.data))}" if demand.data else ""
    noun = "node" if demand.count == 1 else "nodes"
    reason = f"waiting for {demand.count - len(free)} of {demand.count} {noun}{wanted}"
    listed = [f"{n} (free)" if not o else f"{n} ({o})" for n, o in sorted(obstacles.items())]
    if not listed:
        return Choice(reason=f"{reason}; no node has joined")
    return Choice(reason=f"{reason}; known: {', '.join(_shorten(listed))}")


def _obstacle(demand: Demand, candidate: Candidate) -> str:
    if candidate.obstacle:
        return candidate.obstacle
    if lacking := demand.lacks(candidate.data):
        return f"no data {lacking}"
    if candidate.busy_with:
        return f"busy with run {candidate.busy_with}"
    return ""


def _either(names: Sequence[str]) -> str:
    return " or ".join(f"'{name}'" for name in names)


def _shorten(entries: list[str], most: int = 8) -> list[str]:
    return entries if len(entries) <= most else [*entries[:most], f"{len(entries) - most} more"]
