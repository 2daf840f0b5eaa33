"""``farshore init NAME``: create a small project with a federated method that can be simulated at once."""

from __future__ import annotations

import keyword
import re
from importlib import resources
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from ..core.errors import ConfigError, StorageError
from .output import say

#: Template -> file name in the project.
_FILES = {
    "method.py.txt": "{name}.py",
    "scenario.yaml.txt": "scenario.yaml",
    "pyproject.toml.txt": "pyproject.toml",
    "README.md.txt": "README.md",
}


def init(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Method name: lower case, digits and underscores.")],
    folder: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the project [./NAME].")] = None,
) -> None:
    """Create a project with a federated method: a module, a scenario and a project file."""
    from ..core.workloads import names

    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise ConfigError(f"'{name}' is not a valid method name", hint="use a name like 'server_momentum'")
    if name in names():
        raise ConfigError(f"there is already a method '{name}'", hint="choose another name")
    project = folder or Path(name)
    paths = [project / target.format(name=name) for target in _FILES.values()]
    existing = [path for path in paths if path.exists()]
    if existing:
        raise ConfigError(f"{existing[0]} already exists", hint="choose another folder: --folder DIR")
    try:
        project.mkdir(parents=True, exist_ok=True)
        for path, text in zip(paths, render_templates(name), strict=True):
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"cannot write {error.filename}: {error.strerror}") from error
    for path in paths:
        say(f"  {path}")
    say(f"next: farshore simulate {project / 'scenario.yaml'}")


def render_templates(name: str) -> list[str]:
    """Render the project's files, in the order of the templates."""
    title = name.replace("_", " ").capitalize()
    folder = resources.files("farshore") / "template"
    texts = ((folder / template).read_text(encoding="utf-8") for template in _FILES)
    return [Template(text).substitute(name=name, title=title) for text in texts]
