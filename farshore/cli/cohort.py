"""``--nodes`` and ``--node``: how many nodes, or which, play which role in a run."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.errors import ConfigError
from ..core.nodes import RoleCount, RoleRequest


def role_requests(counts: str | None, names: Sequence[str]) -> tuple[RoleRequest, ...]:
    """Read the options of ``farshore run``.

    Parameters
    ----------
    counts : str or None
        ``4``, ``4..8``, ``4+``, or the same by role: ``lidar=1,camera=2..6``.
    names : sequence of str
        ``NAME``, or ``ROLE=NAME``.

    Raises
    ------
    ConfigError
        A text is neither, a role is given twice, or counts and names contradict each other.
    """
    asked: dict[str, RoleCount] = {}
    for part in (counts or "").split(",") if counts is not None else ():
        role, equals, number = part.strip().rpartition("=")
        if (equals and not role) or role in asked:
            raise ConfigError(f"--nodes {counts}: a role is empty or given twice", hint="write ROLE=N,ROLE=N")
        asked[role] = RoleCount.parse(number)
    by_role: dict[str, list[str]] = {}
    for text in names:
        role, _, name = text.rpartition("=")
        by_role.setdefault(role, []).append(name)
    requests = []
    for role in dict.fromkeys([*asked, *by_role]):
        chosen = tuple(by_role.get(role, ()))
        count = asked.get(role, RoleCount(len(chosen), len(chosen)))
        if chosen and count.least != len(chosen):
            where = f" for the role '{role}'" if role else ""
            raise ConfigError(
                f"--nodes {counts} contradicts {len(chosen)} x --node{where}", hint="give one of them, or equal numbers"
            )
        requests.append(RoleRequest(role, count, chosen))
    return tuple(requests)


def node_counts(text: str | None) -> dict[str, int]:
    """Read a fixed number of nodes, ``4``, or numbers by role; the role of a single number is empty.

    Raises
    ------
    ConfigError
        The text is neither.
    """
    counts = {request.role: request.count for request in role_requests(text, ())}
    if any(count.least != count.most for count in counts.values()):
        raise ConfigError(f"--nodes {text}: nodes do not join here", hint="give one number")
    return {role: count.least for role, count in counts.items()}
