"""``farshore export``: write a run's model for other programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import ConfigError, DataError, NotFoundError
from .output import Json, emit, say
from .run_lookup import Home, RunName, find_run

if TYPE_CHECKING:
    from ..core.exports import Format, TrainedModel
    from ..runs.directory import RunDirectory


def export(
    run: RunName,
    onnx: Annotated[Path | None, typer.Option("--onnx", metavar="FILE", help="Write an ONNX file.")] = None,
    safetensors: Annotated[
        Path | None, typer.Option("--safetensors", metavar="FILE", help="Write the named weights.")
    ] = None,
    hf: Annotated[
        Path | None, typer.Option("--hf", metavar="DIR", help="Write a folder for transformers' from_pretrained.")
    ] = None,
    state: Annotated[
        str, typer.Option(metavar="best|last|FILE", help="Which model state of the run, or a safetensors file.")
    ] = "best",
    front: Annotated[
        list[Path] | None,
        typer.Option(
            "--front",
            metavar="DIR",
            help="Folder of a node with its part of a split model, if it is not below ~/.farshore here; repeatable.",
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PATH", help="Path of a data set of the run, to compare outputs on."),
    ] = None,
    home: Home = None,
    json_: Json = False,
) -> None:
    """Write a run's model as ONNX, safetensors or a Hugging Face folder, and compare it with the original."""
    from .settings import data_paths

    given: list[tuple[Format, Path | None]] = [("onnx", onnx), ("safetensors", safetensors), ("hf", hf)]
    targets = [(kind, path) for kind, path in given if path is not None]
    if not targets:
        raise ConfigError("nothing to write", hint="give --onnx FILE, --safetensors FILE or --hf DIR")
    found = find_run(run, home)
    for kind, path in targets:
        exported = _exported(found, kind, path, state, front or (), data_paths(data or ()))
        if json_:
            emit({"event": "exported", "run": found.info["id"], kind: str(path), **exported})
            continue
        say(f"run {found.info['id']}: model written to {path}")
        for name, value in exported.items():
            say(f"  {name.replace('_', ' '):<20} {f'{value:.3g}' if isinstance(value, float) else value}")


def _exported(
    run: RunDirectory, kind: Format, path: Path, state: str, fronts: Sequence[Path], data: dict[str, Path]
) -> dict[str, Any]:
    from ..core import workloads
    from ..core.exports import SupportsExport

    workload = workloads.load(run.info["workload"])
    if not isinstance(workload, SupportsExport):
        raise ConfigError(f"the models of '{workload.name}' cannot be exported", hint="use the run's own files")
    if kind not in workload.exports:
        options = ", ".join(f"--{each}" for each in workload.exports)
        raise ConfigError(f"the models of '{workload.name}' cannot be written as {kind}", hint=f"use {options}")
    trained = _trained(run, workload.config, state, fronts)
    return dict(workload.export(trained, _finder(data), path.expanduser().resolve(), kind))


def _trained(run: RunDirectory, config: Any, state: str, fronts: Sequence[Path]) -> TrainedModel:
    from ..core.exports import TrainedModel
    from ..core.seeds import Seed
    from .settings import resolve

    info = run.info
    # A simulation stores its number of clients, a real run its nodes.
    clients = int(info.get("clients") or len(info["nodes"]))
    folders = {path.resolve().name: path.expanduser().resolve() for path in fronts} or _node_folders(run)
    resolved = resolve(config, info["config"], ())
    return TrainedModel(resolved, Seed(info["seed"]), clients, _state(run, state), run.path, folders)


def _node_folders(run: RunDirectory) -> dict[str, Path]:
    """Find the folders of a run's nodes on this machine: those of a simulation, and below the homes of nodes."""
    from ..core.paths import farshore_home

    simulated = {path.name: path for path in (run.path / "node-states").glob("*") if path.is_dir()}
    real = {path.parents[1].name: path for path in (farshore_home() / "nodes").glob(f"*/runs/{run.info['id']}")}
    return {name: path for name, path in sorted((simulated or real).items()) if name in run.info["nodes"]}


def _state(run: RunDirectory, which: str) -> Path | None:
    """Resolve a model state given by name or path to its file; None if the run wrote none and ``which`` is the default.

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
    if not available:
        return None
    raise NotFoundError(f"run {run.info['id']} has no state '{which}'", hint=f"give --state {available[0]}")


def _finder(data: dict[str, Path]) -> Callable[[str], Path]:
    def find(name: str) -> Path:
        if name not in data:
            raise DataError(f"the data set '{name}' is not given", hint=f"give --data {name}=PATH")
        return data[name]

    return find
