"""Where a run's directory is, given its path or its id."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..core.errors import NotFoundError
from .directory import RunDirectory


def locate(run: str, folders: Iterable[Path]) -> RunDirectory:
    """Open the run that ``run`` names.

    Parameters
    ----------
    run : str
        Path of a run directory, or a run's id.
    folders : iterable of Path
        Where run directories may lie, by id.

    Raises
    ------
    NotFoundError
        There is none.
    StorageError
        Its ``run.json`` is damaged.
    """
    path = Path(run).expanduser()
    if path.is_dir():
        inside = sorted(entry.parent for entry in path.glob("*/run.json"))
        if inside and not (path / "run.json").exists():
            raise NotFoundError(f"{run} is a folder of runs", hint=f"name one of them, such as {inside[0]}")
        return RunDirectory.open(path)
    looked = list(folders)
    if path.name == run and run not in ("", ".", ".."):  # an id is one name: no way out of the folders
        for folder in looked:
            if (folder / run / "run.json").is_file():
                return RunDirectory.open(folder / run)
    places = ", ".join(map(str, looked))
    raise NotFoundError(
        f"no run is called '{run}' in {places}",
        hint="give the run's directory; 'farshore runs show RUN' tells where it is",
    )
