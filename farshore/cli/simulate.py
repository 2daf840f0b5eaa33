"""``farshore simulate``: compare a method's arms on simulated clients, and show what each round and byte brought."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import ConfigError
from .output import Json, emit, say, table

if TYPE_CHECKING:
    from ..simulations.scenario import Scenario
    from ..simulations.trial import Trial
    from .scenarios import Engine


def simulate(
    scenario: Annotated[
        str | None,
        typer.Argument(
            metavar="SCENARIO", help="A YAML file, a ready scenario's name, a method's, or a Flower app's folder."
        ),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the method, for all arms.")
    ] = None,
    arm: Annotated[list[str] | None, typer.Option(help="Only this arm; repeat it for more.")] = None,
    clients: Annotated[int | None, typer.Option(min=1, help="How many clients there are.")] = None,
    seeds: Annotated[str | None, typer.Option(metavar="N,N…", help="Each arm runs once per seed.")] = None,
    data: Annotated[list[str] | None, typer.Option(metavar="NAME=PATH", help="A data set of the clients.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0 = as many as there are cores.")] = 0,
    backend: Annotated[str, typer.Option(metavar="local|ray", help="What plays the clients.")] = "local",
    address: Annotated[str, typer.Option(help="Of a Ray cluster; without it Ray is started here.")] = "",
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where runs and pictures go.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the ready scenarios.")] = False,
    json_: Json = False,
) -> None:
    """Simulate a federation: virtual clients, the real method, every byte that a real run would cost."""
    if list_:
        _list(as_json=json_)
        return
    if scenario is None:
        raise ConfigError(
            "no scenario was named", hint="try 'farshore simulate vhl', or see 'farshore simulate --list'"
        )
    from ..core.paths import base
    from ..runs.ids import new_run_id
    from . import scenarios
    from .settings import data_paths

    if (app := scenarios.flower_app(scenario)) is not None:
        from . import apps

        apps.simulate(app, set_ or (), clients, seeds, out, as_json=json_)
        return
    name, wanted = scenarios.find(scenario)
    wanted = scenarios.changed(wanted, arms=arm, clients=clients, seeds=seeds)
    folder = (out or base() / "simulations" / f"{name}-{new_run_id()}").expanduser().resolve()
    configs = scenarios.configs(wanted, set_ or ())
    engine = scenarios.Engine.of(workers, backend, address, scenarios.threads_of(configs))
    trials = scenarios.trials(wanted, configs, folder, data_paths(data or ()), engine)
    _simulate(wanted, trials, engine, as_json=json_)
    _tell(name, wanted, trials, folder, as_json=json_)


def _list(*, as_json: bool) -> None:
    from ..simulations.scenario import bundled_scenarios

    found = bundled_scenarios()
    if as_json:
        emit([{"name": n, **s.model_dump(mode="json")} for n, s in found.items()])
        return
    rows = [(n, s.clients, f"{len(s.arms)} x {len(s.seeds)}", s.about) for n, s in found.items()]
    table(("name", "clients", "arms x seeds", "what it shows"), rows, "no scenario is installed")


def _simulate(scenario: Scenario, trials: Sequence[Trial], engine: Engine, *, as_json: bool) -> None:
    from ..simulations.experiment import Experiment
    from .trials import trials_display

    left = [t for t in trials if not t.finished()]
    at_once, _ = engine.plan(len(trials))
    if not as_json:
        say(scenario.about or scenario.method)
        of = f"{_several(len(scenario.arms), 'arm')} x {_several(len(scenario.seeds), 'seed')}"
        say(f"{of} in up to {_several(engine.cores, 'process')}")
    with trials_display(left, as_json=as_json) as shown:
        Experiment(left, at_once, shown.event).run()


def _tell(name: str, scenario: Scenario, trials: Sequence[Trial], folder: Path, *, as_json: bool) -> None:
    from ..reports.arms import compare
    from ..reports.curves import Curve, read_curve
    from ..runs.directory import RunDirectory
    from ..runs.files import write_json

    curves: dict[str, dict[int, Curve]] = {arm: {} for arm in scenario.arms}
    for trial in trials:
        curves[trial.arm][trial.seed] = read_curve(RunDirectory(Path(trial.directory)), scenario.score)
    arms = compare(curves, scenario.baseline)
    found = {"scenario": name, **scenario.model_dump(mode="json"), "results": [a.as_dict() for a in arms]}
    write_json(folder / "comparison.json", found)
    picture = _draw(curves, folder / "comparison.png", scenario)
    if as_json:
        emit({"event": "compared", "folder": str(folder), "picture": picture and str(picture), **found})
        return
    from ..runs.contents import contents
    from .comparison import show_comparison

    show_comparison(arms, curves, scenario.baseline)
    say("")
    say(f"runs and figures  {_short(folder)}")
    say(f"each run holds    {', '.join(name for name, _ in contents(Path(trials[0].directory)))}")
    if picture:
        say(f"picture           {_short(picture)}")
    else:
        say("picture           none: pip install 'farshore[plots]'")


def _draw(curves: Any, path: Path, scenario: Scenario) -> Path | None:
    """The picture, where matplotlib is installed."""
    from ..core.errors import MissingExtraError
    from ..reports.plots import draw_comparison

    try:
        draw_comparison(curves, path, title=scenario.about or scenario.method, score=scenario.score)
    except MissingExtraError:
        return None
    return path


def _several(count: int, what: str) -> str:
    ending = "" if count == 1 else "es" if what.endswith("s") else "s"
    return f"{count} {what}{ending}"


def _short(path: Path) -> str:
    """Relative to where the user is, if that is shorter."""
    relative = os.path.relpath(path)
    return min(str(path), relative, key=len)
