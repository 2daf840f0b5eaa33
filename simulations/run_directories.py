"""Opens the run directory of a simulation: a new one, or that of an interrupted run with the same settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError
from ..runs.directory import RunDirectory
from .origin import differences


def open_or_create(directory: Path, info: Mapping[str, Any], origin: Mapping[str, Any]) -> RunDirectory:
    """Open a run directory for a simulation.

    Parameters
    ----------
    directory : Path
    info : Mapping
        Entries of ``run.json`` that a resumed run must share.
    origin : Mapping
        See :func:`.origin.origin_of`; a resumed run must share it too.

    Raises
    ------
    ConfigError
        The directory holds a run that differs in an entry, or in code, data or versions of the software.
    """
    if not (directory / "run.json").exists():
        made = {"id": directory.name, "nodes": [], **info, "origin": origin, "simulated": True}
        return RunDirectory.create(directory, made)
    run = RunDirectory.open(directory)
    check_same(run, "run", info, origin)
    return run


def check_same(run: RunDirectory, what: str, info: Mapping[str, Any], origin: Mapping[str, Any]) -> None:
    """Check that a run directory holds a run with these entries of ``run.json``, made from the same.

    Raises
    ------
    ConfigError
        It does not; the message names the differences, and calls the run ``what``.
    """
    found = run.info
    differing = [name for name, value in info.items() if found.get(name) != value]
    # Those of before have only the versions.
    before = found.get("origin") or {"versions": found["versions"], **{k: origin[k] for k in ("code", "data")}}
    differing += differences(before, origin)
    if differing:
        raise ConfigError(
            f"{run.path} holds a {what} that differs in {', '.join(differing)}",
            hint="choose another directory: --out DIR, or delete this one",
        )
