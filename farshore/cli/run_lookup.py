"""Locate runs on disk, by directory or id, for commands that need no server."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..runs.directory import RunDirectory

RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or its directory.")]
Home = Annotated[Path | None, typer.Option("--home", help="Home of a server on this machine [~/.farshore/server].")]


def runs_on_disk(home: Path | None, known: Collection[str] = ()) -> list[RunDirectory]:
    """List the run directories below a server's home, newest first, skipping ids in ``known`` and damaged runs."""
    from ..core.errors import FarshoreError
    from ..core.paths import server_home
    from ..runs.directory import RunDirectory

    found = []
    for path in (home or server_home()).expanduser().glob("runs/*/run.json"):
        if path.parent.name in known:
            continue
        with contextlib.suppress(FarshoreError):
            found.append(RunDirectory.open(path.parent))
    return sorted(found, key=lambda run: float(run.info.get("created") or 0), reverse=True)


def find_run(run: str, home: Path | None) -> RunDirectory:
    """Open the directory of a run given by id or path.

    Raises
    ------
    NotFoundError
        There is no such run on this machine.
    """
    from ..core.paths import server_home
    from ..runs.locate import locate

    return locate(run, [(home or server_home()).expanduser() / "runs"])
