"""The scheduler: pure functions that choose the nodes of a run, or explain why it has to wait."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..core.nodes import DEFAULT_ROLE, Capability, nearest_name
from ..core.packages import extras_of


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node, as input of the scheduler.

    Attributes
    ----------
    data : frozenset of str
        Names of its data sets.
    labels : Mapping[str, str]
    offers : frozenset of str
        Its capabilities.
    packages : frozenset of str, optional
        Which of the packages that methods may need it has; None = it does not say.
    methods : frozenset of str, optional
        The methods that it knows; None = it does not say.
    install : str
        Command that installs extras there, with ``{extras}`` for their names.
    memory_bytes : int
        0 = it does not say.
    busy_with : str
        Id of the run that the node is assigned to, or empty.
    obstacle : str
        Why it cannot take part in any run (``lost``, ``not connected``); empty if it can.
    """

    name: str
    data: frozenset[str] = frozenset()
    labels: Mapping[str, str] = field(default_factory=dict)
    offers: frozenset[str] = frozenset()
    packages: frozenset[str] | None = None
    methods: frozenset[str] | None = None
    install: str = ""
    memory_bytes: int = 0
    busy_with: str = ""
    obstacle: str = ""


@dataclass(frozen=True, slots=True)
class Demand:
    """What a run needs for one role: these nodes by name, or any ``count`` that fit.

    Attributes
    ----------
    data : tuple of tuple of str
        Data sets that each node must have; for each, the alternative names.
    needs : tuple of str
        Capabilities that each node must offer.
    labels : Mapping[str, str]
        Labels that each node must carry.
    method : str
        The method that each node must know; empty = any.
    packages : tuple of str
        Packages that each node must have.
    memory_bytes : int
        Main memory that each node must have.
    """

    count: int
    names: tuple[str, ...] = ()
    data: tuple[tuple[str, ...], ...] = ()
    role: str = DEFAULT_ROLE
    needs: tuple[Capability, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    method: str = ""
    packages: tuple[str, ...] = ()
    memory_bytes: int = 0

    def obstacle(self, candidate: Candidate | None) -> str:
        """Return why a node cannot take this role now; empty if it can."""
        if candidate is None:
            return "never joined"
        if candidate.obstacle:
            return candidate.obstacle
        for names in self.data:
            if not candidate.data.intersection(names):
                return f"no data {_either(names)}"
        for need in self.needs:
            if need not in candidate.offers:
                return f"no {need}"
        for key, value in self.labels.items():
            if candidate.labels.get(key) != value:
                return f"no label {key}={value}"
        return self._lacks(candidate) or (f"busy with run {candidate.busy_with}" if candidate.busy_with else "")

    def _lacks(self, candidate: Candidate) -> str:
        """Return what of the method is not installed on a node, and the cure."""
        if self.method and candidate.methods is not None and self.method not in candidate.methods:
            return f"does not know the method '{self.method}': install its package there"
        lacking = [] if candidate.packages is None else [p for p in self.packages if p not in candidate.packages]
        if lacking:
            command = candidate.install.replace("{extras}", extras_of(lacking))
            cure = f"; on it, run {command} and start it again" if command else ""
            return f"lacks {' and '.join(lacking)}{cure}"
        if 0 < candidate.memory_bytes < self.memory_bytes:
            return f"{candidate.memory_bytes / 1e9:.1f} GB of memory, about {self.memory_bytes / 1e9:.1f} GB are needed"
        return ""

    def describe(self) -> str:
        """Describe the role and its conditions, for the reason of a waiting run."""
        parts = [f" for the role '{self.role}'"] if self.role != DEFAULT_ROLE else []
        conditions = [f"data {_either(names)}" for names in self.data]
        conditions += [*self.needs, *(f"label {key}={value}" for key, value in self.labels.items())]
        parts += [f" with {' and '.join(conditions)}"] if conditions else []
        return "".join(parts)


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen cohort, as roles by node in order; or the reason why the run has to wait."""

    nodes: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""


def choose(demands: Sequence[Demand], candidates: Sequence[Candidate]) -> Choice:
    """Choose a cohort.

    Nodes requested by name keep their order, so that a resumed run has the same cohort. All others are taken in name
    order, so that the same free nodes always give the same cohort. A node that fits several roles gets the one that
    leaves the others possible.
    """
    known = {c.name: c for c in candidates}
    missing = {n: why for d in demands for n in d.names if (why := d.obstacle(known.get(n)))}
    for name in missing.keys() - known.keys():
        missing[name] = "; ".join(filter(None, (missing[name], nearest_name(name, known))))
    if missing:
        return Choice(reason=f"waiting for {', '.join(f'{n} ({why})' for n, why in missing.items())}")
    named = {n for d in demands for n in d.names}
    free = [known[n] for n in sorted(known) if n not in named]
    found = _match([d for d in demands if not d.names], free)
    for demand in demands:
        if not demand.names and len(found[demand.role]) < demand.count:
            return Choice(reason=_shortage(demand, len(found[demand.role]), candidates))
    cohort = {n: d.role for d in demands for n in (d.names or found[d.role])}
    return Choice(cohort)


def _match(demands: Sequence[Demand], free: Sequence[Candidate]) -> dict[str, list[str]]:
    """Assign as many nodes as possible (augmenting paths over roles); returns sorted node names by role."""
    members: dict[str, list[Candidate]] = {d.role: [] for d in demands}

    def assign(candidate: Candidate, visited: set[str]) -> bool:
        for demand in demands:
            group = members[demand.role]
            if demand.role in visited or demand.obstacle(candidate):
                continue
            visited.add(demand.role)
            if len(group) < demand.count:
                group.append(candidate)
                return True
            for place, other in enumerate(group):
                if assign(other, visited):
                    group[place] = candidate
                    return True
        return False

    for candidate in free:
        if all(len(members[d.role]) >= d.count for d in demands):
            break
        assign(candidate, set())
    return {role: sorted(c.name for c in group) for role, group in members.items()}


def _shortage(demand: Demand, found: int, candidates: Sequence[Candidate]) -> str:
    noun = "node" if demand.count == 1 else "nodes"
    reason = f"waiting for {demand.count - found} of {demand.count} {noun}{demand.describe()}"
    obstacles = {c.name: demand.obstacle(c) for c in candidates}
    listed = [f"{n} (free)" if not o else f"{n} ({o})" for n, o in sorted(obstacles.items())]
    if not listed:
        return f"{reason}; no node has joined"
    return f"{reason}; known: {', '.join(_shorten(listed))}"


def _either(names: Sequence[str]) -> str:
    return " or ".join(f"'{name}'" for name in names)


def _shorten(entries: list[str], most: int = 8) -> list[str]:
    return entries if len(entries) <= most else [*entries[:most], f"{len(entries) - most} more"]
