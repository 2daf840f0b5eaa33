"""Flower apps on the command line: ``farshore run flower --app DIR`` and ``farshore simulate DIR``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import ConfigError
from .output import emit, note, say

if TYPE_CHECKING:
    from ..engines.flower.config import FlowerRun

#: Nodes of a simulation unless --clients says otherwise.
_CLIENTS = 10


def app_settings(app: Path, pairs: Sequence[str]) -> FlowerRun:
    """Settings of a run of the app in a folder.

    Parameters
    ----------
    app : Path
    pairs : sequence of str
        ``key=value``: keys of the app's own configuration, or of the method where the app has none of that name.

    Raises
    ------
    ConfigError
        It is no Flower app, or a key or value is wrong.
    """
    from ..engines.flower.config import FlowerRun
    from ..engines.flower.project import Project
    from ..simulations.flower_app import flower_run
    from .settings import read_pair

    own = FlowerRun.model_fields.keys() - {"archive", "digest", "run_config"}
    known = Project.read(app).config
    given = dict(read_pair(pair) for pair in pairs)
    of_method = {key: str(value) for key, value in given.items() if key in own and key not in known}
    return flower_run(app, {k: v for k, v in given.items() if k not in of_method}, **of_method)


def told_by_hash(settings: FlowerRun, app: Path) -> None:
    """Say what operators have to accept."""
    note(f"app {app}: {settings.digest}")
    note(f"  nodes accept it with: farshore node join … --accept-apps {settings.digest}")
    note(f"  so does another one's server: farshore server up … --accept-apps {settings.digest}")


def simulate(
    app: Path, pairs: Sequence[str], clients: int | None, seeds: str | None, out: Path | None, *, as_json: bool
) -> None:
    """Run an app on simulated nodes, and say what came of it."""
    from ..core.paths import base
    from ..runs.ids import new_run_id
    from ..simulations.flower_app import simulate_app
    from .progress import Meter, display

    if seeds is not None and not seeds.isdecimal():
        raise ConfigError(f"--seeds {seeds}: an app is simulated once", hint="give one number")
    settings = app_settings(app, pairs)
    folder = (out or base() / "simulations" / f"{app.resolve().name}-{new_run_id()}").expanduser().resolve()
    meter = Meter()
    with display(app.resolve().name, as_json=as_json) as shown:

        def on_progress(done: int, total: int, figures: Any) -> None:
            shown.show(meter.read(done, total, figures, time.monotonic()))

        result = simulate_app(settings, folder, clients or _CLIENTS, seed=int(seeds or 0), on_progress=on_progress)
    if as_json:
        emit({"event": "ended", "directory": str(folder), "result": result})
        return
    say(f"{result['messages']} messages, {result['failures']} of them failed")
    say(f"  {folder}")
