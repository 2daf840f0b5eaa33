"""Methods of a project directory that is not installed, declared in its ``pyproject.toml``; for simulations only.

Nodes and servers run installed methods only.
"""

from __future__ import annotations

import os
import sys
import tomllib
from pathlib import Path

from .errors import ConfigError

#: The entry-point group of methods.
GROUP = "farshore.workloads"

#: Environment variable by which the processes of a simulation get the project directory.
_VARIABLE = "FARSHORE_PROJECT"


def methods_of(folder: Path) -> dict[str, str]:
    """Return the names and import paths that the project in ``folder`` declares; empty without a ``pyproject.toml``.

    Raises
    ------
    ConfigError
        The file cannot be read or parsed, or an entry is not an import path.
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
        raise ConfigError(f'{path}: [project.entry-points."{GROUP}"] must have entries like name = "module:WORKLOAD"')
    return listed


def use_project(folder: Path) -> None:
    """Make the methods of a project available in this process and those that it starts."""
    os.environ[_VARIABLE] = str(folder.resolve())


def methods_in_use() -> dict[str, str]:
    """Return the methods of the project in use, and add its directory to the import path."""
    folder = os.environ.get(_VARIABLE)
    if not folder:
        return {}
    found = methods_of(Path(folder))
    if found and folder not in sys.path:
        sys.path.append(folder)
    return found
