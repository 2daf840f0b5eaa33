"""The virtual nodes of a simulated run, and the workloads that cannot have any."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.errors import ConfigError
from ..core.nodes import roles_of
from ..core.session import Workload
from .clock import Devices

#: Name of a request's only count, for workloads with one role.
ONLY_ROLE = ""


def check_simulated(workload: Workload) -> None:
    """Check that a workload's programs can be threads of one process, on virtual nodes.

    Raises
    ------
    ConfigError
        They cannot; the hint says what to do instead.
    """
    name = workload.name
    if getattr(workload, "node_may_open", False):
        raise ConfigError(
            f"'{name}' cannot be simulated: its node is a training script of yours",
            hint="run the script with a server of this machine: farshore server up",
        )
    if getattr(workload, "code", None) is not None:
        raise ConfigError(
            f"'{name}' cannot be simulated: its runs bring code of their own",
            hint="farshore simulate FOLDER simulates a Flower app",
        )


def check_config(config: Any) -> None:
    """Check that a configuration needs nothing that virtual nodes lack.

    Raises
    ------
    ConfigError
        Its nodes talk to each other directly.
    """
    if getattr(config, "transport", "") == "peers":
        raise ConfigError(
            "transport=peers: the ranks of a simulation exchange tensors through the server only",
            hint="use transport=star",
        )


def virtual_nodes(workload: Workload, config: Any, counts: Mapping[str, int]) -> dict[str, str]:
    """Return the nodes of a run, with their roles: as many as ``counts`` says, or else as the workload does.

    Parameters
    ----------
    counts : Mapping
        Number of nodes by role; by :data:`ONLY_ROLE` for workloads with one role.

    Raises
    ------
    ConfigError
        A role is unknown, none was named although there are several, or there is no node at all.
    """
    roles = {role.name: role.count for role in roles_of(workload, config)}
    asked = dict(counts)
    if ONLY_ROLE in asked:
        if len(roles) > 1:
            raise ConfigError(
                f"'{workload.name}' has the roles {', '.join(roles)}", hint="name them: --nodes ROLE=N,ROLE=N"
            )
        asked = {next(iter(roles)): asked[ONLY_ROLE]}
    if unknown := next((role for role in asked if role not in roles), None):
        raise ConfigError(f"'{workload.name}' has no role '{unknown}'", hint=f"its roles are {', '.join(roles)}")
    nodes = {
        f"{role}-{number}": role for role, count in roles.items() for number in range(1, asked.get(role, count) + 1)
    }
    if not nodes:
        raise ConfigError(f"the run has no nodes: '{workload.name}' has the roles {', '.join(roles)}")
    return nodes


def check_devices(devices: Devices | None, *, federated: bool) -> None:
    """Refuse device settings that only the other kind of simulation has.

    Raises
    ------
    ConfigError
        There is one.
    """
    if devices is None:
        return
    given = [name for name in (_NODES_ONLY if federated else _FEDERATED_ONLY) if _is_set(devices, name)]
    if given:
        kind = "not federated" if federated else "federated"
        raise ConfigError(f"devices: '{given[0]}' is for methods that are {kind}")


_FEDERATED_ONLY = ("deadline", "over")
_NODES_ONLY = ("seconds_per_message", "server_seconds_per_message")


def _is_set(devices: Devices, name: str) -> bool:
    return bool(getattr(devices, name) != Devices.model_fields[name].get_default(call_default_factory=True))
