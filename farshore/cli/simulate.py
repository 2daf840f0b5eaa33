"""``farshore simulate``: run any method on virtual nodes, and compare the arms of a scenario."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.errors import ConfigError
from .output import Json, emit, say, table

if TYPE_CHECKING:
    from ..simulations.scenario import Scenario
    from ..simulations.trial import Trial
    from .comparison import ScoreComparison, ValueComparison
    from .scenarios import Engine


def simulate(
    scenario: Annotated[
        str | None,
        typer.Argument(
            metavar="SCENARIO", help="A YAML file, a built-in scenario, a method, or the folder of a Flower app."
        ),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the method, for all arms.")
    ] = None,
    arm: Annotated[list[str] | None, typer.Option(help="Run only this arm; repeatable.")] = None,
    clients: Annotated[int | None, typer.Option(min=1, help="Number of clients, or of nodes.")] = None,
    nodes: Annotated[
        str | None, typer.Option(metavar="N|ROLE=N,…", help="Number of nodes, or of nodes by role.")
    ] = None,
    devices: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE", help="Devices of the nodes, for virtual time: e.g. phones-4g, or YAML."),
    ] = None,
    seconds_per_step: Annotated[
        float | None, typer.Option(help="Duration of a step on a device of compute factor 1 [0.01].")
    ] = None,
    seeds: Annotated[str | None, typer.Option(metavar="N,N…", help="Seeds; each arm runs once per seed.")] = None,
    data: Annotated[list[str] | None, typer.Option(metavar="NAME=PATH", help="Path of a data set.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Worker processes; 0 = one per core.")] = 0,
    backend: Annotated[str, typer.Option(metavar="local|ray", help="Where clients are simulated.")] = "local",
    address: Annotated[str, typer.Option(help="Address of a Ray cluster [start Ray on this machine].")] = "",
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder for runs and plots.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the built-in scenarios.")] = False,
    json_: Json = False,
) -> None:
    """Simulate a run on virtual nodes, with the code and the ledger of a real run."""
    if list_:
        _list(as_json=json_)
        return
    if scenario is None:
        raise ConfigError("no scenario given", hint="try 'farshore simulate vhl', or see 'farshore simulate --list'")
    from ..core.paths import farshore_home
    from ..runs.ids import new_run_id
    from . import scenarios
    from .settings import data_paths

    if (app := scenarios.flower_app_folder(scenario)) is not None:
        from . import apps

        apps.simulate(app, set_ or (), clients, seeds, out, as_json=json_)
        return
    name, selected = scenarios.find_scenario(scenario)
    count = nodes if clients is None else str(clients)
    if nodes is not None and clients is not None:
        raise ConfigError("--clients and --nodes are the same number", hint="give one of them")
    if seconds_per_step is not None and not seconds_per_step > 0:
        raise ConfigError(f"--seconds-per-step {seconds_per_step:g} is not a duration", hint="give seconds, e.g. 0.01")
    selected = scenarios.override(
        selected, arms=arm, nodes=count, seeds=seeds, devices=devices, seconds_per_step=seconds_per_step
    )
    folder = (out or farshore_home() / "simulations" / f"{name}-{new_run_id()}").expanduser().resolve()
    configs = scenarios.configs(selected, set_ or ())
    engine = scenarios.Engine.from_options(workers, backend, address, scenarios.threads_of(configs))
    trials = scenarios.trials(selected, configs, folder, data_paths(data or ()), engine)
    _simulate(selected, trials, engine, as_json=json_)
    _print_comparison(name, selected, trials, folder, as_json=json_)


def _list(*, as_json: bool) -> None:
    from ..simulations.scenario import bundled_scenarios

    found = bundled_scenarios()
    if as_json:
        emit([{"name": n, **s.model_dump(mode="json")} for n, s in found.items()])
        return
    rows = [(n, s.clients, f"{len(s.arms)} x {len(s.seeds)}", s.about) for n, s in found.items()]
    table(("name", "clients", "arms x seeds", "description"), rows, "no scenarios are installed")


def _simulate(scenario: Scenario, trials: Sequence[Trial], engine: Engine, *, as_json: bool) -> None:
    from ..simulations.experiment import Experiment
    from .trials import trials_display

    left = [t for t in trials if not t.finished()]
    at_once, _ = engine.plan(len(trials))
    if not as_json:
        say(scenario.about or scenario.method)
        counts = f"{_several(len(scenario.arms), 'arm')} x {_several(len(scenario.seeds), 'seed')}"
        say(f"{counts} in up to {_several(engine.cores, 'process')}")
    with trials_display(left, as_json=as_json) as shown:
        Experiment(left, at_once, shown.event).run()


def _print_comparison(name: str, scenario: Scenario, trials: Sequence[Trial], folder: Path, *, as_json: bool) -> None:
    from ..runs.contents import contents
    from ..runs.files import write_json
    from .comparison import ScoreComparison, ValueComparison

    kind = ScoreComparison if scenario.score else ValueComparison
    comparison = kind.of(scenario, trials)
    found = {"scenario": name, **scenario.model_dump(mode="json"), "results": comparison.as_list()}
    write_json(folder / "comparison.json", found)
    picture, reason = _draw(comparison, folder / "comparison.png")
    if as_json:
        emit({"event": "compared", "folder": str(folder), "picture": picture and str(picture), **found})
        return
    comparison.show()
    say("")
    say(f"runs and results  {_short(folder)}")
    say(f"files of a run    {', '.join(name for name, _ in contents(Path(trials[0].directory)))}")
    say(f"plot              {_short(picture) if picture else reason}")


def _draw(comparison: ScoreComparison | ValueComparison, path: Path) -> tuple[Path | None, str]:
    """Draw the comparison; returns the figure's path, or None and the reason why there is none."""
    from ..core.errors import MissingExtraError

    try:
        return (path, "") if comparison.draw(path) else (None, "none; the runs have no metrics")
    except MissingExtraError:
        return None, "none; pip install 'farshore[plots]'"


def _several(count: int, what: str) -> str:
    ending = "" if count == 1 else "es" if what.endswith("s") else "s"
    return f"{count} {what}{ending}"


def _short(path: Path) -> str:
    """Format a path relative to the working directory if that is shorter."""
    relative = os.path.relpath(path)
    return min(str(path), relative, key=len)
