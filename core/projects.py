"""Methods of a project that is not installed: a folder whose ``pyproject.toml`` names them, for simulations only.

Nodes and servers run installed methods; whoever simulates on a machine of their own may run what lies before them.
"""

from __future__ import annotations

import os
import sys
import tomllib
from pathlib import Path

from .errors import ConfigError

#: The entry-point group of methods.
GROUP = "farshore.workloads"

#: Names the folder to the processes that a simulation starts.
_VARIABLE = "FARSHORE_PROJECT"


def methods_of(folder: Path) -> dict[str, str]:
    """Names and import paths that the project in ``folder`` declares; none without a ``pyproject.toml``.

    Raises
    ------
    ConfigError
        The file cannot be read, or is not what it should be.
    """
    path = folder / "pyproject.toml"
    if not path.is_file():
        return {}
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    listed = found.get("project", {}).get("entry-points", {}).get(GROUP, {})
    if not isinstance(listed, dict) or not all(isinstance(v, str) and ":" in v for v in listed.values()):
        raise ConfigError(f'{path}: [project.entry-points."{GROUP}"] holds lines like name = "module:WORKLOAD"')
    return listed


def use_project(folder: Path) -> None:
    """Let this process, and those it starts, import the methods of a project; the folder goes on the import path."""
    os.environ[_VARIABLE] = str(folder.resolve())


def methods_in_use() -> dict[str, str]:
    """Methods of the project in use; none if there is none."""
    folder = os.environ.get(_VARIABLE)
    if not folder:
        return {}
    found = methods_of(Path(folder))
    if found and folder not in sys.path:
        sys.path.append(folder)
    return found
