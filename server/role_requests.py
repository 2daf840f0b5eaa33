"""What a run's submitter asks for, role by role: from the request, and as demands for the scheduler."""

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
    """The role requests of a submission; node count and names stand for the workload's only role.

    Raises
    ------
    ConfigError
        A node is named twice.
    """
    asked = [
        RoleRequest(r.role, RoleCount(len(r.nodes) or r.least, max(r.most, len(r.nodes) or r.least)), tuple(r.nodes))
        for r in request.roles
    ]
    if not asked and (request.nodes or request.node_count):
        count = len(request.nodes) or request.node_count
        asked = [RoleRequest("", RoleCount(count, count), tuple(request.nodes))]
    names = [name for one in asked for name in one.nodes]
    if len(set(names)) != len(names):
        raise ConfigError("the run names the same node twice")
    return tuple(asked)


def resolve(
    workload: str, roles: Sequence[Role], asked: Sequence[RoleRequest], *, may_join: bool
) -> tuple[RoleRequest, ...]:
    """A request for every role of a workload, in its order; roles that were not asked for get their defaults.

    Raises
    ------
    ConfigError
        A role is unknown or asked for twice, a number without a role is given for several roles, nodes are to join a
        workload that no node can join, or no node is asked for at all.
    """
    known = [role.name for role in roles]
    found: dict[str, RoleRequest] = {}
    for request in asked:
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


def demands_of(
    roles: Sequence[Role],
    requests: Sequence[RoleRequest],
    cohort: Mapping[str, str],
    available: Collection[str],
) -> list[Demand]:
    """What the scheduler looks for.

    Parameters
    ----------
    cohort : Mapping[str, str]
        Node -> role of a run that restarts; empty for a new run. It gets the same nodes again. Roles that may grow
        continue with those that are ``available``, as long as these are as many as the run begins with.
    """
    needs = {role.name: role for role in roles}
    demands = []
    for request in requests:
        role, names, least = needs[request.role], request.nodes, request.count.least
        if cohort:
            names = tuple(name for name, played in cohort.items() if played == request.role)
            if request.count.most > least:
                here = [name for name in names if name in available]
                away = [name for name in names if name not in available]
                names = tuple([*here, *away[: max(0, least - len(here))]])
        data = tuple(tuple(one) for one in role.data)
        if names or (least and not cohort):
            demands.append(Demand(least, names, data, role.name, role.needs, role.labels))
    return demands


def to_json(requests: Sequence[RoleRequest], cohort: Mapping[str, str]) -> str:
    """Requests and cohort as the run store keeps them."""
    asked = [[r.role, r.count.least, r.count.most, list(r.nodes)] for r in requests]
    return json.dumps({"requests": asked, "cohort": dict(cohort)})


def from_json(text: str) -> tuple[tuple[RoleRequest, ...], dict[str, str]]:
    """Read what :func:`to_json` wrote."""
    values: dict[str, Any] = json.loads(text)
    asked = tuple(RoleRequest(role, RoleCount(a, b), tuple(names)) for role, a, b, names in values["requests"])
    return asked, dict(values["cohort"])
