"""``farshore export``: write a run's model as an ONNX file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import ConfigError, DataError, NotFoundError
from .output import Json, emit, say
from .run_lookup import Home, RunName, find_run

if TYPE_CHECKING:
    from ..runs.directory import RunDirectory


def export(
    run: RunName,
    onnx: Annotated[Path, typer.Option("--onnx", metavar="FILE", help="Write the model to this ONNX file.")],
    state: Annotated[
        str, typer.Option(metavar="best|last|FILE", help="Which model state of the run, or a safetensors file.")
    ] = "best",
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PATH", help="Path of a data set of the run, for test images."),
    ] = None,
    home: Home = None,
    json_: Json = False,
) -> None:
    """Export a run's model and compare the file with the model on test images."""
    from .settings import data_paths

    found = find_run(run, home)
    path = onnx.expanduser().resolve()
    exported = _exported(found, _state(found, state), data_paths(data or ()), path)
    if json_:
        emit({"event": "exported", "run": found.info["id"], "onnx": str(path), **exported})
        return
    say(f"run {found.info['id']}: model written to {onnx}")
    for name, value in exported.items():
        say(f"  {name.replace('_', ' '):<20} {value:.2g}" if isinstance(value, float) else f"  {name:<20} {value}")


def _state(run: RunDirectory, which: str) -> Path:
    """Resolve a model state given by name or path to its file.

    Raises
    ------
    NotFoundError
        The file does not exist.
    """
    is_name = which in ("best", "last")
    path = run.path / "states" / f"{which}.safetensors" if is_name else Path(which).expanduser()
    if path.is_file():
        return path
    if not is_name:
        raise NotFoundError(f"there is no state {which}", hint="give --state best, last or a safetensors file")
    available = sorted(file.stem for file in (run.path / "states").glob("*.safetensors"))
    raise NotFoundError(
        f"run {run.info['id']} has no state '{which}'",
        hint=f"give --state {available[0]}" if available else "states are written at the first checkpoint",
    )


def _exported(run: RunDirectory, state: Path, data: dict[str, Path], path: Path) -> dict[str, Any]:
    from ..core import workloads
    from ..core.exports import SupportsExport, TrainedModel
    from ..core.seeds import Seed
    from .settings import resolve

    info = run.info
    workload = workloads.load(info["workload"])
    if not isinstance(workload, SupportsExport):
        raise ConfigError(f"the models of '{workload.name}' cannot be exported", hint="use the run's own files")
    config = resolve(workload.config, info["config"], ())
    # A simulation stores its number of clients, a real run its nodes.
    trained = TrainedModel(config, Seed(info["seed"]), int(info.get("clients") or len(info["nodes"])), state)
    return dict(workload.export(trained, _finder(data), path))


def _finder(data: dict[str, Path]) -> Callable[[str], Path]:
    def find(name: str) -> Path:
        if name not in data:
            raise DataError(f"the data set '{name}' is not given", hint=f"give --data {name}=PATH")
        return data[name]

    return find
