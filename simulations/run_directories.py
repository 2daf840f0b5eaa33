"""Opens the run directory of a simulation: a new one, or that of an interrupted run with the same settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError
from ..core.version import Versions
from ..runs.directory import RunDirectory


def open_or_create(directory: Path, info: Mapping[str, Any]) -> RunDirectory:
    """Open a run directory for a simulation.

    Parameters
    ----------
    directory : Path
    info : Mapping
        Entries of ``run.json`` that a resumed run must share.

    Raises
    ------
    ConfigError
        The directory holds a run that differs in an entry, or in the versions of the software.
    """
    if not (directory / "run.json").exists():
        return RunDirectory.create(directory, {"id": directory.name, "nodes": [], **info, "simulated": True})
    run = RunDirectory.open(directory)
    found, expected = run.info, {**info, "versions": asdict(Versions.local())}
    differing = [name for name, value in expected.items() if found.get(name) != value]
    if differing:
        raise ConfigError(
            f"{directory} holds a run that differs in {', '.join(differing)}", hint="choose another directory"
        )
    return run
