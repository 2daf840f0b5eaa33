"""``farshore export``: a run's model as a file that other programs run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import ConfigError, DataError, NotFoundError
from .output import Json, emit, say
from .run_lookup import Home, RunName, find

if TYPE_CHECKING:
    from ..runs.directory import RunDirectory


def export(
    run: RunName,
    onnx: Annotated[Path, typer.Option("--onnx", metavar="FILE", help="Write the model as ONNX to this file.")],
    state: Annotated[
        str, typer.Option(metavar="best|last|FILE", help="Which of the run's states, or a safetensors file.")
    ] = "best",
    data: Annotated[
        list[str] | None, typer.Option(metavar="NAME=PATH", help="A data set of the run; its test images are needed.")
    ] = None,
    home: Home = None,
    json_: Json = False,
) -> None:
    """Export a run's model, and compare the file with the model on test images."""
    from .settings import data_paths

    found = find(run, home)
    path = onnx.expanduser().resolve()
    told = _exported(found, _state(found, state), data_paths(data or ()), path)
    if json_:
        emit({"event": "exported", "run": found.info["id"], "onnx": str(path), **told})
        return
    say(f"run {found.info['id']}: its model is in {onnx}")
    for name, value in told.items():
        say(f"  {name.replace('_', ' '):<20} {value:.2g}" if isinstance(value, float) else f"  {name:<20} {value}")


def _state(run: RunDirectory, which: str) -> Path:
    """The file of a state by its name or path.

    Raises
    ------
    NotFoundError
        There is no such file.
    """
    named = which in ("best", "last")
    path = run.path / "states" / f"{which}.safetensors" if named else Path(which).expanduser()
    if path.is_file():
        return path
    if not named:
        raise NotFoundError(f"there is no state {which}", hint="give --state best, last or a safetensors file")
    there = sorted(file.stem for file in (run.path / "states").glob("*.safetensors"))
    raise NotFoundError(
        f"run {run.info['id']} has no state '{which}'",
        hint=f"give --state {there[0]}" if there else "a federated run writes its states with its first checkpoint",
    )


def _exported(run: RunDirectory, state: Path, data: dict[str, Path], path: Path) -> dict[str, Any]:
    from ..core import workloads
    from ..core.exports import Exports, TrainedModel
    from ..core.seeds import Seed
    from .settings import resolve

    info = run.info
    workload = workloads.load(info["workload"])
    if not isinstance(workload, Exports):
        raise ConfigError(f"the models of '{workload.name}' cannot be exported", hint="take the run's files themselves")
    config = resolve(workload.config, info["config"], ())
    # A simulation has clients that are numbers, a real run has nodes.
    trained = TrainedModel(config, Seed(info["seed"]), int(info.get("clients") or len(info["nodes"])), state)
    return dict(workload.export(trained, _finder(data), path))


def _finder(data: dict[str, Path]) -> Callable[[str], Path]:
    def find(name: str) -> Path:
        if name not in data:
            raise DataError(f"the data set '{name}' is not given", hint=f"give --data {name}=PATH")
        return data[name]

    return find
