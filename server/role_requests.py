"""The role requests of a run: parsing, validation, and conversion to demands for the scheduler."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..core.errors import ConfigError
from ..core.nodes import Role, RoleCount, RoleRequest
from ..proto import control_pb2 as pb
from .scheduler import Demand


def requests_of(request: pb.SubmitRequest) -> tuple[RoleRequest, ...]:
    """Read the role requests of a submission; node count and names refer to the workload's only role.

    Raises
    ------
    ConfigError
        A node is named twice.
    """
    requested = [
        RoleRequest(r.role, RoleCount(len(r.nodes) or r.least, max(r.most, len(r.nodes) or r.least)), tuple(r.nodes))
        for r in request.roles
    ]
    if not requested and (request.nodes or request.node_count):
        count = len(request.nodes) or request.node_count
        requested = [RoleRequest("", RoleCount(count, count), tuple(request.nodes))]
    names = [name for one in requested for name in one.nodes]
    if len(set(names)) != len(names):
        raise ConfigError("the run names the same node twice")
    return tuple(requested)


def resolve(
    workload: str, roles: Sequence[Role], requested: Sequence[RoleRequest], *, may_join: bool
) -> tuple[RoleRequest, ...]:
    """Complete the requests of a run to one per role of the workload, in its order; missing roles get their defaults.

    Raises
    ------
    ConfigError
        A role is unknown or requested twice, a count without a role is given for several roles, a range is given for a
        workload that nodes cannot join, or no node is requested.
    """
    known = [role.name for role in roles]
    found: dict[str, RoleRequest] = {}
    for request in requested:
        name = request.role or (known[0] if len(known) == 1 else "")
        if not name:
            example = ",".join(f"{role.name}={max(role.count, 1)}" for role in roles)
            raise ConfigError(f"'{workload}' has the roles {', '.join(known)}", hint=f"write --nodes {example}")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"its roles: {', '.join(known)}"
            raise ConfigError(f"'{workload}' has no role '{name[:64]}'", hint=hint)
        if name in found:
            raise ConfigError(f"the role '{name}' is given twice")
        if request.count.most > request.count.least and not may_join:
            raise ConfigError(
                f"nodes cannot join a run of '{workload}' in progress",
                hint=f"write --nodes {request.count.least}, without '+' or '..'",
            )
        found[name] = RoleRequest(name, request.count, request.nodes)
    for role in roles:
        found.setdefault(role.name, RoleRequest(role.name, RoleCount(role.count, role.count)))
    if not any(request.count.least for request in found.values()):
        raise ConfigError(f"the run of '{workload}' has no nodes", hint="give --nodes")
    return tuple(found[name] for name in known)


def demand_of(role: Role, method: str, count: int, names: tuple[str, ...] = ()) -> Demand:
    """Return what a role of a method demands of ``count`` nodes, or of these."""
    data = tuple(tuple(one) for one in role.data)
    return Demand(count, names, data, role.name, role.needs, role.labels, method, role.packages, role.memory_bytes)


def demands_of(
    method: str,
    roles: Sequence[Role],
    requests: Sequence[RoleRequest],
    cohort: Mapping[str, str],
    available: Collection[str],
) -> list[Demand]:
    """Return the demands of a run for the scheduler.

    Parameters
    ----------
    cohort : Mapping[str, str]
        Roles by node of a restarting run, which gets the same nodes again; empty for a new run.
    available : Collection[str]
        Nodes that are available now. A role with a range of nodes continues with its available ones if there are
        enough of them.
    """
    needs = {role.name: role for role in roles}
    demands = []
    for request in requests:
        role, names, least = needs[request.role], request.nodes, request.count.least
        if cohort:
            names = tuple(name for name, assigned in cohort.items() if assigned == request.role)
            if request.count.most > least:
                here = [name for name in names if name in available]
                away = [name for name in names if name not in available]
                names = (*here, *away[: max(0, least - len(here))])
        if names or (least and not cohort):
            demands.append(demand_of(role, method, least, names))
    return demands


def to_json(requests: Sequence[RoleRequest], cohort: Mapping[str, str]) -> str:
    """Serialize requests and cohort for the run store."""
    requested = [[r.role, r.count.least, r.count.most, list(r.nodes)] for r in requests]
    return json.dumps({"requests": requested, "cohort": dict(cohort)})


def from_json(text: str) -> tuple[tuple[RoleRequest, ...], dict[str, str]]:
    """Read what :func:`to_json` wrote."""
    values: dict[str, Any] = json.loads(text)
    requested = tuple(RoleRequest(role, RoleCount(a, b), tuple(names)) for role, a, b, names in values["requests"])
    return requested, dict(values["cohort"])
