"""``farshore sweep``: run a method over a grid of settings and seeds, on nodes or on the cores of this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import ConfigError
from .connect import Connect, connectable
from .output import Json, say
from .run import _methods

if TYPE_CHECKING:
    from ..simulations.sweeps.config import SweepConfig


@connectable
def sweep(
    connect: Connect,
    method: Annotated[
        str,
        typer.Argument(
            metavar="METHOD | FILE",
            help="A method that needs one node only, or a YAML file.",
            autocompletion=_methods,
        ),
    ],
    grid: Annotated[
        list[str] | None,
        typer.Option("--grid", metavar="KEY=V,V…", help="Values of a setting; 1..5 is a range; repeatable."),
    ] = None,
    seeds: Annotated[str | None, typer.Option(metavar="N..N | N,N", help="Seeds of each cell [0].")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the method, for all cells.")
    ] = None,
    nodes: Annotated[
        str | None, typer.Option(metavar="N | N+ | N..N", help="Nodes; with + more may join the run [1+].")
    ] = None,
    node: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Name of a node to use; repeatable.")] = None,
    slots: Annotated[
        int | None, typer.Option(min=0, help="Items that a node works on at a time; 0: one per core [1].")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads per item; results depend on them [1].")] = None,
    tries: Annotated[int | None, typer.Option(min=1, help="Times that an item may fail [2].")] = None,
    metric: Annotated[str | None, typer.Option(help="Metric that compares cells [a score, or the loss].")] = None,
    best: Annotated[str | None, typer.Option(metavar="max|min", help="Which values are better [by the name].")] = None,
    halving: Annotated[
        str | None, typer.Option(metavar="KEY=A..B[/N]", help="Successive halving, e.g. epochs=5..40; needs --metric.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PATH", help="With --local a data set, else a file of the server, sent to nodes."),
    ] = None,
    local: Annotated[bool, typer.Option("--local", help="Use the cores of this machine, without a server.")] = False,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="With --local: directory of the sweep.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the newest unfinished such sweep.")] = False,
    wait: Annotated[
        str | None, typer.Option(metavar="TIME", help="Wait for nodes, e.g. 10m [they must be connected].")
    ] = None,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a line per item.")] = None,
    json_file: Annotated[Path | None, typer.Option(metavar="FILE", help="Write cells and items as JSON.")] = None,
    picture: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the cells: .png, .svg or .pdf.")] = None,
    json_: Json = False,
) -> None:
    """Run a method over a grid of settings and seeds; same results on any number of nodes."""
    from .settings import data_paths, mapping
    from .sweep_output import Outputs
    from .sweep_runs import run_here, run_on_nodes
    from .sweep_settings import read_sweep

    if local and (nodes or node or wait):
        raise ConfigError("--local uses this machine only", hint="leave out --nodes, --node and --wait")
    if out is not None and not local:
        raise ConfigError("--out is for sweeps with --local", hint="use --csv, --json-file or --picture")
    outputs = Outputs(csv, json_file, picture, json_)
    outputs.check()
    options: dict[str, Any] = {"seeds": seeds, "slots": slots, "threads": threads, "tries": tries}
    options |= {"metric": metric, "best": best, "halving": halving}
    if local:
        config = read_sweep(method, grid or (), set_ or (), {**options, "slots": slots or 0, "inputs": ()})
        _introduce(config, json_)
        run_here(config, data_paths(data or ()), out, resume=resume, outputs=outputs)
        return
    sent = mapping(data or (), "--data")
    config = read_sweep(method, grid or (), set_ or (), {**options, "inputs": tuple(sent) or None})
    _introduce(config, json_)
    with connect() as admin:
        run_on_nodes(admin, config, sent, _requested(nodes, node or ()), wait=wait, resume=resume, outputs=outputs)


def _introduce(config: SweepConfig, as_json: bool) -> None:
    if as_json:
        return
    cells = config.count // len(config.seeds)
    rungs = f", {len(config.halving.budgets)} rungs of halving" if config.halving else ""
    say(f"sweep of {config.method}: {cells} cell{'s' * (cells != 1)} x {len(config.seeds)} seed"
        f"{'s' * (len(config.seeds) != 1)}{rungs}")  # fmt: skip


def _requested(nodes: str | None, names: Sequence[str]) -> tuple[Any, ...]:
    from .cohort import role_requests

    requests = role_requests(nodes if nodes is not None or names else "1+", names)
    if any(request.role for request in requests):
        raise ConfigError(f"--nodes {nodes}: the nodes of a sweep have no roles", hint="write --nodes 4 or --nodes 2+")
    return requests
