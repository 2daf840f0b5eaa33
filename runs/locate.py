"""Lookup of a run's directory by path or id."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..core.errors import NotFoundError
from .directory import RunDirectory


def locate(run: str, folders: Iterable[Path]) -> RunDirectory:
    """Open a run given by path or id.

    Parameters
    ----------
    run : str
        Path of a run directory, or a run id.
    folders : iterable of Path
        Folders that contain run directories named by id.

    Raises
    ------
    NotFoundError
        No such run exists.
    StorageError
        Its ``run.json`` is damaged.
    """
    path = Path(run).expanduser()
    if path.is_dir():
        inner = sorted(entry.parent for entry in path.glob("*/run.json"))
        if inner and not (path / "run.json").exists():
            raise NotFoundError(f"{run} is a folder of runs", hint=f"name one of them, such as {inner[0]}")
        return RunDirectory.open(path)
    searched = list(folders)
    if path.name == run and run not in ("", ".", ".."):  # an id is a single path component
        for folder in searched:
            if (folder / run / "run.json").is_file():
                return RunDirectory.open(folder / run)
    places = ", ".join(map(str, searched))
    raise NotFoundError(
        f"no run is called '{run}' in {places}",
        hint="give the run's directory; 'farshore runs show RUN' prints it",
    )
