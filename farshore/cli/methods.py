"""``farshore methods``: list the methods and their settings."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .output import Json, emit, say, table


def methods(
    name: Annotated[str | None, typer.Argument(help="Show this method's settings.")] = None,
    json_: Json = False,
) -> None:
    """List the methods, or the settings of one method with their defaults."""
    if name is not None:
        _settings(name, as_json=json_)
        return
    described = [_describe(known) for known in _names()]
    if json_:
        emit(described)
        return
    table(
        ("name", "summary"),
        [(m["name"], m["summary"]) for m in described],
        "no method is installed",
    )


def _names() -> list[str]:
    from ..core.workloads import names

    return sorted(names())


def _describe(name: str) -> dict[str, Any]:
    from ..core import workloads
    from ..core.errors import FarshoreError

    try:
        return {"name": name, "summary": workloads.load(name).summary, "available": True}
    except FarshoreError as error:
        return {"name": name, "summary": f"not available: {error}", "available": False}


def _settings(name: str, *, as_json: bool) -> None:
    from ..core import workloads
    from .settings import describe

    workload = workloads.load(name)
    if as_json:
        emit({"name": name, "summary": workload.summary, "schema": workload.config.model_json_schema()})
        return
    say(f"{name}: {workload.summary}")
    table(("key", "type", "default", "description"), describe(workload.config), "no settings")
