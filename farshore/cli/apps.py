"""Flower apps on the command line: ``run flower --app DIR``, ``simulate DIR`` and ``farshore apps hash DIR``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import ConfigError
from .output import Json, emit, note, say

if TYPE_CHECKING:
    from ..engines.flower.config import FlowerRun

app = typer.Typer(help="Look at Flower apps.", no_args_is_help=True)

#: Simulated nodes where --clients is not given.
_CLIENTS = 10


def app_settings(app: Path, pairs: Sequence[str]) -> FlowerRun:
    """Build the settings for a run of the Flower app in a folder.

    Parameters
    ----------
    app : Path
    pairs : sequence of str
        ``key=value``. A key of the app's own configuration, or of the method where the app does not define it.

    Raises
    ------
    ConfigError
        The folder is not a Flower app, or a key or value is invalid.
    """
    from ..engines.flower.config import FlowerRun
    from ..engines.flower.project import Project
    from ..simulations.flower_app import flower_run
    from .settings import read_pair

    method_keys = FlowerRun.model_fields.keys() - {"archive", "digest", "run_config"}
    app_config = Project.read(app).config
    given = dict(read_pair(pair) for pair in pairs)
    of_method = {key: str(value) for key, value in given.items() if key in method_keys and key not in app_config}
    return flower_run(app, {k: v for k, v in given.items() if k not in of_method}, **of_method)


@app.command("hash")
def hash_of(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the app, with its pyproject.toml.")],
    json_: Json = False,
) -> None:
    """Print the hash by which operators accept an app, and which of its requirements this machine does not meet."""
    from ..engines.flower.project import Project
    from ..engines.flower.requirements import differences

    digest, lacking = app_settings(folder, ()).digest, differences(Project.read(folder).requirements)
    if json_:
        emit({"event": "app", "path": str(folder), "hash": digest, "differences": lacking})
        return
    say(digest)
    for line in lacking:
        note(f"on this machine, {line}")


def print_app_hash(settings: FlowerRun, app: Path) -> None:
    """Print the app's hash and the options with which operators accept it."""
    note(f"app {app}: {settings.digest}")
    note(f"  to accept it on a node: farshore node join … --accept-apps {settings.digest}")
    note(f"  to accept it on a server you do not operate: farshore server up … --accept-apps {settings.digest}")


def simulate(
    app: Path, pairs: Sequence[str], clients: int | None, seeds: str | None, out: Path | None, *, as_json: bool
) -> None:
    """Run a Flower app on simulated nodes and print the result."""
    from ..core.paths import farshore_home
    from ..runs.ids import new_run_id
    from ..simulations.flower_app import simulate_app
    from .progress import Meter, display

    if seeds is not None and not seeds.isdecimal():
        raise ConfigError(f"--seeds {seeds}: a Flower app is simulated with a single seed", hint="give one number")
    settings = app_settings(app, pairs)
    folder = (out or farshore_home() / "simulations" / f"{app.resolve().name}-{new_run_id()}").expanduser().resolve()
    meter = Meter()
    with display(app.resolve().name, as_json=as_json) as shown:

        def on_progress(done: int, total: int, values: Any) -> None:
            shown.show(meter.read(done, total, values, time.monotonic()))

        result = simulate_app(settings, folder, clients or _CLIENTS, seed=int(seeds or 0), on_progress=on_progress)
    if as_json:
        emit({"event": "ended", "directory": str(folder), "result": result})
        return
    say(f"{result['messages']} messages, {result['failures']} failed")
    say(f"  {folder}")
