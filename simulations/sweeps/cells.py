"""The cells of a sweep: the combinations of its grid, and the method's configuration of each."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from ...core.errors import ConfigError
from ...core.nodes import nearest_name, roles_of
from ...core.session import Workload
from ...core.workloads import load
from ..virtual_nodes import check_config, check_simulated
from .config import SweepConfig

#: The node of every item.
NODE = "node-1"


def cells(config: SweepConfig) -> list[dict[str, Any]]:
    """Return all combinations of the grid; the last key varies fastest."""
    return [dict(zip(config.grid, values, strict=True)) for values in itertools.product(*config.grid.values())]


def settings_of(config: SweepConfig, cell: Mapping[str, Any], budget: int | None = None) -> dict[str, Any]:
    """Return the method's settings in a cell.

    Raises
    ------
    ConfigError
        A dotted key leads into a setting that is not a section.
    """
    values: dict[str, Any] = copy.deepcopy(config.settings)
    for key, value in cell.items():
        _put(values, key, value)
    if config.halving is not None and budget is not None:
        _put(values, config.halving.key, budget)
    return values


def first_budget(config: SweepConfig) -> int | None:
    """Return the budget of the first rung; None without halving."""
    return config.halving.budgets[0] if config.halving is not None else None


def method_config(workload: Workload, settings: Mapping[str, Any]) -> BaseModel:
    """Return a configuration of the method.

    Raises
    ------
    ConfigError
        A key or a value is invalid.
    """
    try:
        return workload.config.model_validate(dict(settings))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        hint = nearest_name(key, workload.config.model_fields) if first["type"] == "extra_forbidden" else ""
        where = f": {key}" if key else ""
        raise ConfigError(
            f"invalid settings of '{workload.name}'{where}: {first['msg'].removeprefix('Value error, ')}", hint=hint
        ) from None


def method_of(config: SweepConfig) -> tuple[Workload, list[BaseModel]]:
    """Return the method of a sweep and its configuration in each cell.

    Raises
    ------
    NotFoundError, MissingExtraError, MethodError
        There is no such method, or it cannot be imported.
    ConfigError
        It does not run on one node alone, or the settings of a cell are invalid.
    """
    workload = load(config.method)
    configs = [method_config(workload, settings_of(config, cell, first_budget(config))) for cell in cells(config)]
    for each in configs:
        check_alone(workload, each)
    if config.halving is not None:
        for budget in config.halving.budgets[1:]:
            method_config(workload, settings_of(config, cells(config)[0], budget))
    return workload, configs


def check_alone(workload: Workload, config: BaseModel) -> dict[str, str]:
    """Return the role of the only node of a method that runs on one node alone.

    Raises
    ------
    ConfigError
        The method cannot, or not with this configuration.
    """
    name = workload.name
    try:
        check_simulated(workload)
        check_config(config)
    except ConfigError as error:
        reason = error.message.removeprefix(f"'{name}' cannot be simulated: ")
        hint = error.hint if "transport" in error.message else ""
        raise ConfigError(f"'{name}' cannot be swept: {reason}", hint=hint) from None
    if workload.config is SweepConfig:
        raise ConfigError(f"'{name}' cannot be swept: it is a sweep itself", hint="give one grid with all settings")
    needed = [role for role in roles_of(workload, config) if role.count]
    if len(needed) != 1:
        raise ConfigError(
            f"'{name}' cannot be swept: it does not run on one node alone, it needs the roles "
            f"{', '.join(role.name for role in needed)}",
            hint=f"farshore simulate {name}",
        )
    least = getattr(workload, "least_nodes", None)
    if least is not None and (count := least(config)) > 1:
        raise ConfigError(
            f"'{name}' cannot be swept: it does not run on one node alone, it needs {count} with these settings",
            hint=f"choose settings that need one node, or use farshore simulate {name}",
        )
    return {NODE: needed[0].name}


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ConfigError(
                f"the setting '{section}' is '{inner}', which has no '{key}'", hint=f"do not set {section}"
            )
        values = inner
    values[last] = value
