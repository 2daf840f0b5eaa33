"""``farshore simulate``: compare a method's arms on simulated clients, and show what each round and byte brought."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import ConfigError
from .output import Json, emit, say, table

if TYPE_CHECKING:
    from ..simulations.scenario import Scenario
    from ..simulations.trial import Trial


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
            "no scenario was named", cure="try 'farshore simulate vhl', or see 'farshore simulate --list'"
        )
    if Path(scenario).is_dir():
        from . import apps

        apps.simulate(Path(scenario), set_ or (), clients, seeds, out, as_json=json_)
        return
    from ..core.homes import base
    from ..runs.ids import new_run_id
    from .settings import data_paths

    name, wanted = _scenario(scenario)
    wanted = _changed(wanted, arm=arm, clients=clients, seeds=seeds)
    folder = (out or base() / "simulations" / f"{name}-{new_run_id()}").expanduser().resolve()
    cores = workers or _cores()
    trials = _trials(wanted, set_ or (), folder, data_paths(data or ()), cores)
    _simulate(wanted, trials, cores, as_json=json_)
    _tell(name, wanted, trials, folder, as_json=json_)


def _list(*, as_json: bool) -> None:
    from ..simulations.scenario import ready

    found = ready()
    if as_json:
        emit([{"name": n, **s.model_dump(mode="json")} for n, s in found.items()])
        return
    rows = [(n, s.clients, f"{len(s.arms)} x {len(s.seeds)}", s.about) for n, s in found.items()]
    table(("name", "clients", "arms x seeds", "what it shows"), rows, "no scenario is installed")


def _cores() -> int:
    from ..simulations.experiment import cores

    return cores()


def _scenario(name: str) -> tuple[str, Scenario]:
    """A scenario, or a method as one arm with its defaults; a project's methods are those beside its scenario."""
    from ..core.projects import methods_of, use_project
    from ..core.workloads import names
    from ..simulations.scenario import Scenario, find, ready

    project = Path(name).parent if name.endswith((".yaml", ".yml")) else Path()
    if methods_of(project):
        use_project(project)
    if name in names() and name not in ready():
        return name, Scenario(about=f"{name} with its defaults", method=name, arms={name: {}})
    return find(name)


def _changed(scenario: Scenario, *, arm: Sequence[str] | None, clients: int | None, seeds: str | None) -> Scenario:
    """The scenario as the command line wants it."""
    update: dict[str, Any] = {}
    if arm:
        unknown = [a for a in arm if a not in scenario.arms]
        if unknown:
            raise ConfigError(f"there is no arm '{unknown[0]}'", cure=f"arms are {', '.join(scenario.arms)}")
        update["arms"] = {a: scenario.arms[a] for a in arm}
        update["baseline"] = scenario.baseline if scenario.baseline in arm else ""
    if clients is not None:
        update["clients"] = clients
    if seeds is not None:
        try:
            update["seeds"] = tuple(dict.fromkeys(int(s) for s in seeds.split(",")))
        except ValueError as error:
            raise ConfigError(f"--seeds {seeds}: not numbers with commas between them") from error
    return scenario.model_copy(update=update)


def _trials(
    scenario: Scenario, pairs: Sequence[str], folder: Path, data: Mapping[str, Path], cores: int
) -> list[Trial]:
    """Every arm with every seed, seeds outermost, so that early results compare all arms."""
    from ..core.workloads import load
    from ..simulations.experiment import plan
    from ..simulations.trial import Trial, folder_of
    from .settings import resolve

    model = load(scenario.method).config
    configs = {a: resolve(model, scenario.values(a), pairs).model_dump(mode="json") for a in scenario.arms}
    folders = {folder_of(a, 0) for a in configs}
    if len(folders) < len(configs):
        raise ConfigError("two arms have names that differ in punctuation only", cure="rename one of them")
    _, workers = plan(len(configs) * len(scenario.seeds), cores)
    paths = {name: str(path) for name, path in data.items()}
    return [
        Trial(a, s, str(folder / folder_of(a, s)), scenario.method, configs[a], scenario.clients, paths, workers)
        for s in scenario.seeds
        for a in configs
    ]


def _simulate(scenario: Scenario, trials: Sequence[Trial], cores: int, *, as_json: bool) -> None:
    from ..simulations.experiment import Experiment, plan
    from .trials import trials_display

    left = [t for t in trials if not t.finished()]
    at_once, _ = plan(len(trials), cores)
    if not as_json:
        say(scenario.about or scenario.method)
        say(f"{len(scenario.arms)} arms x {len(scenario.seeds)} seeds on {cores} cores")
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
    from .comparison import show_comparison

    show_comparison(arms, curves, scenario.baseline)
    say("")
    say(f"runs and figures  {_short(folder)}")
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


def _short(path: Path) -> str:
    """Relative to where the user is, if that is shorter."""
    relative = os.path.relpath(path)
    return min(str(path), relative, key=len)
