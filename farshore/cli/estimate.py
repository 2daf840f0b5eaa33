"""``farshore estimate``: estimate a run's communication without running it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..core.errors import ConfigError, DataError
from .output import Json, emit, say, show


def estimate(
    method: Annotated[str, typer.Argument(metavar="METHOD", help="See 'farshore methods'.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting; dotted keys, YAML values."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with settings; --set overrides it.")] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Number of nodes.")] = 1,
    data: Annotated[list[str] | None, typer.Option(metavar="NAME=PATH", help="Path of a data set of the run.")] = None,
    assume: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=NUMBER", help="Assume a value instead of reading data, e.g. tokens=13.3."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Root of the seed tree.")] = 0,
    json_: Json = False,
) -> None:
    """Estimate what a run sends, by kind, round or step, and its transfer time on typical links."""
    from ..core import workloads
    from ..core.seeds import Seed
    from ..core.traffic_plan import Setting, SupportsTrafficPlan
    from ..reports.estimate import estimate as estimated
    from .settings import build, data_paths

    workload = workloads.load(method)
    if not isinstance(workload, SupportsTrafficPlan):
        raise ConfigError(
            f"the communication of '{method}' cannot be estimated: it depends on user code",
            hint="run it and use 'farshore report'",
        )
    settings = build(workload.config, set_ or (), config)
    paths = data_paths(data or ())

    def find(name: str) -> Path:
        if name not in paths:
            raise DataError(f"the data set '{name}' is not given", hint=f"give --data {name}=PATH")
        return paths[name]

    names = tuple(f"node-{number}" for number in range(1, nodes + 1))
    plan = workload.plan(settings, Setting(names, Seed(seed), find, _numbers(assume or ())))
    found = estimated(plan, method, settings.model_dump(mode="json"), seed)
    if json_:
        emit(found.as_dict())
        return
    from ..reports.report_tables import report_tables

    say(f"estimate: {method}, {nodes} node{'s' * (nodes > 1)}, seed {seed}; without failures or retransmissions")
    for note in found.notes:
        say(f"assumed: {note}")
    say("")
    for table in report_tables(found.report):
        show(table)
        say("")


def _numbers(pairs: list[str] | tuple[str, ...]) -> dict[str, float]:
    from .settings import mapping

    try:
        return {name: float(value) for name, value in mapping(pairs, "--assume").items()}
    except ValueError as error:
        raise ConfigError(f"--assume: {error}", hint="write e.g. --assume tokens=13.3") from None
