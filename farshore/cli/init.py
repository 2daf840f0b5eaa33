"""``farshore init NAME``: create a small project with a method that can be tested, simulated and run at once."""

from __future__ import annotations

import difflib
import keyword
import re
import tomllib
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from importlib.util import find_spec
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from ..core.errors import ConfigError, StorageError
from .output import say

#: File of a kind's templates with the texts in which kinds differ.
_TEXTS = "kind.toml"
#: Templates that all kinds share.
_SHARED = "shared"
#: Files of a project whose names depend on the method; others are called as their templates.
_NAMED = {"method.py": "{name}.py", "test_method.py": "tests/test_{name}.py"}
#: Names that mean something else to pytest or pip in a project's folder.
_RESERVED = {"conftest", "setup", "tests"}


def init(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Method name: lower case, digits and underscores.")],
    kind: Annotated[
        str, typer.Option(metavar="federated|training|workload", help="What the project starts from.")
    ] = "federated",
    folder: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the project [./NAME].")] = None,
) -> None:
    """Create a project with a method of your own: a module, tests, a README and a project file."""
    _check_kind(kind)
    _check_name(name)
    project = folder or Path(name)
    if folder is None and project.exists() and not (project.is_dir() and not any(project.iterdir())):
        raise ConfigError(f"{project} already exists", hint="choose another name, or a folder: --folder DIR")
    files = render_project(name, kind)
    existing = [path for path in files if (project / path).exists()]
    if existing:
        raise ConfigError(f"{project / existing[0]} already exists", hint="choose another folder: --folder DIR")
    try:
        for path, text in files.items():
            (project / path).parent.mkdir(parents=True, exist_ok=True)
            (project / path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"cannot write {error.filename}: {error.strerror}") from error
    _say_next(project, kind, files)


def kinds() -> list[str]:
    """Return the kinds of projects, as their templates' folders are called."""
    return sorted(each.name for each in _templates().iterdir() if (each / _TEXTS).is_file())


def render_project(name: str, kind: str) -> dict[str, str]:
    """Return the files of a project: path in the project -> text.

    Parameters
    ----------
    name : str
        Name of the method.
    kind : str
        One of :func:`kinds`.
    """
    texts = tomllib.loads((_templates() / kind / _TEXTS).read_text(encoding="utf-8"))
    values = {"name": name, "title": name.replace("_", " ").capitalize()}
    values |= {key: Template(text).substitute(values).strip("\n") for key, text in texts.items()}
    found = {}
    for template in _files(kind):
        file = template.name.removesuffix(".txt")
        found[_NAMED.get(file, file).format(name=name)] = Template(template.read_text(encoding="utf-8")).substitute(
            values
        )
    return found


def _templates() -> Traversable:
    return resources.files("farshore") / "template"


def _files(kind: str) -> Iterator[Traversable]:
    for folder in (kind, _SHARED):
        files = (file for file in (_templates() / folder).iterdir() if file.name.endswith(".txt"))
        yield from sorted(files, key=lambda file: file.name)


def _check_kind(kind: str) -> None:
    if kind not in kinds():
        near = difflib.get_close_matches(kind, kinds(), n=1, cutoff=0.5)
        hint = f"did you mean --kind {near[0]}?" if near else f"kinds are {', '.join(kinds())}"
        raise ConfigError(f"there is no kind of project called '{kind}'", hint=hint)


def _check_name(name: str) -> None:
    """Check that a name can be that of a new method and of an importable module."""
    from ..core.workloads import names

    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        near = re.sub(r"[^a-z0-9_]+", "_", name.lower()).strip("_0123456789")
        usable = bool(near) and not keyword.iskeyword(near)
        raise ConfigError(
            f"'{name}' is not a valid method name",
            hint=f"use lower-case letters, digits and underscores: '{near if usable else 'server_momentum'}'",
        )
    if name in names():
        raise ConfigError(f"there is already a method '{name}'", hint="choose another name")
    if name in _RESERVED or _is_module(name):
        raise ConfigError(
            f"a module '{name}' would hide another one of that name", hint=f"choose another name, like 'my_{name}'"
        )


def _is_module(name: str) -> bool:
    spec = find_spec(name)
    return spec is not None and spec.origin is not None  # a folder without code has none


def _say_next(project: Path, kind: str, files: dict[str, str]) -> None:
    for path in files:
        say(f"  {project / path}")
    say("next:")
    say(f"  cd {project}")
    say("  pip install -e '.[test]' && pytest")
    scenario = "scenario.yaml" in files
    method = next(path.removesuffix(".py") for path in files if path.endswith(".py") and "/" not in path)
    say(f"  farshore simulate {'scenario.yaml' if scenario else method}")
    say("  README.md: on a server with nodes, and what to edit")
