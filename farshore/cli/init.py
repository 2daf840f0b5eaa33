"""``farshore init NAME``: an own federated method as a small project that runs as it is, without a network."""

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

#: Template -> name in the project.
_FILES = {
    "method.py.txt": "{name}.py",
    "scenario.yaml.txt": "scenario.yaml",
    "pyproject.toml.txt": "pyproject.toml",
    "README.md.txt": "README.md",
}


def init(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the method; lower case, digits and underscores.")],
    folder: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to write it [./NAME].")] = None,
) -> None:
    """Make an own federated method: a module, a scenario and a project file."""
    from ..core.workloads import names

    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise ConfigError(f"'{name}' is no name for a method", hint="write it like 'server_momentum'")
    if name in names():
        raise ConfigError(f"there is a method called '{name}' already", hint="choose another name")
    place = folder or Path(name)
    written = [place / target.format(name=name) for target in _FILES.values()]
    there = [path for path in written if path.exists()]
    if there:
        raise ConfigError(f"{there[0]} is there already", hint="choose another folder: --folder DIR")
    try:
        place.mkdir(parents=True, exist_ok=True)
        for path, text in zip(written, filled(name), strict=True):
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"cannot write {error.filename}: {error.strerror}") from error
    for path in written:
        say(f"  {path}")
    say(f"now: farshore simulate {place / 'scenario.yaml'}")


def filled(name: str) -> list[str]:
    """The texts of a project's files, in the order of the templates."""
    title = name.replace("_", " ").capitalize()
    folder = resources.files("farshore") / "template"
    texts = ((folder / template).read_text(encoding="utf-8") for template in _FILES)
    return [Template(text).substitute(name=name, title=title) for text in texts]
