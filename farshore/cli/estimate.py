"""``farshore estimate``: estimate a run's communication by its plan, or by a rehearsal of a few rounds or steps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import ConfigError, DataError
from .output import Json, emit, note, say, show

if TYPE_CHECKING:
    from ..core.session import Workload
    from ..core.traffic_plan import SupportsTrafficPlan
    from ..reports.estimate import Estimate


def estimate(
    method: Annotated[str, typer.Argument(metavar="METHOD", help="See 'farshore methods'.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting; dotted keys, YAML values."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with settings; --set overrides it.")] = None,
    nodes: Annotated[
        str | None, typer.Option(metavar="N|ROLE=N,…", help="Number of nodes, or of nodes by role [1].")
    ] = None,
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
    from ..core.traffic_plan import SupportsTrafficPlan
    from .settings import build, data_paths

    workload = workloads.load(method)
    _check_own_code(workload)
    settings = build(workload.config, set_ or (), config)
    paths = data_paths(data or ())
    if isinstance(workload, SupportsTrafficPlan):
        found = _planned(workload, settings, _number(nodes), seed, paths, _numbers(assume or ()))
    elif assume:
        raise ConfigError(f"--assume: '{method}' is estimated by running it", hint="use --data NAME=PATH")
    else:
        found = _rehearsed(workload, settings, nodes, seed, paths)
    if json_:
        emit(found.as_dict())
        return
    from ..reports.report_tables import report_tables

    count = len(found.report.info["nodes"])
    say(f"estimate: {method}, {count} node{'s' * (count > 1)}, seed {seed}; without failures or retransmissions")
    for line in found.notes:
        say(f"assumed: {line}")
    say("")
    for table in report_tables(found.report):
        show(table)
        say("")


def _check_own_code(workload: Workload) -> None:
    from ..simulations.virtual_nodes import check_simulated

    try:
        check_simulated(workload)
    except ConfigError as error:
        raise ConfigError(
            f"the communication of '{workload.name}' cannot be estimated: it depends on user code",
            hint="run it and use 'farshore report'",
        ) from error


def _planned(
    workload: SupportsTrafficPlan,
    settings: Any,
    nodes: int,
    seed: int,
    paths: Mapping[str, Path],
    assumed: Mapping[str, float],
) -> Estimate:
    from ..core.seeds import Seed
    from ..core.traffic_plan import Setting
    from ..reports.estimate import estimate as estimated

    def find(name: str) -> Path:
        if name not in paths:
            raise DataError(f"the data set '{name}' is not given", hint=f"give --data {name}=PATH")
        return paths[name]

    names = tuple(f"node-{number}" for number in range(1, nodes + 1))
    plan = workload.plan(settings, Setting(names, Seed(seed), find, assumed))
    return estimated(plan, workload.name, settings.model_dump(mode="json"), seed)  # type: ignore[attr-defined]


def _rehearsed(workload: Workload, settings: Any, nodes: str | None, seed: int, paths: Mapping[str, Path]) -> Estimate:
    from dataclasses import replace

    from ..reports.estimate import estimate_ledger
    from ..simulations.rehearsal import rehearsal_of, rehearse
    from ..simulations.virtual_nodes import check_config, virtual_nodes
    from .cohort import node_counts

    check_config(settings)
    placed = virtual_nodes(workload, settings, node_counts(nodes))
    rehearsal, whole = rehearsal_of(workload, settings)
    if whole:
        note(f"'{workload.name}' names no rehearsal: its run is executed here from beginning to end")
    ledger = rehearse(workload, rehearsal, placed, seed, paths)
    config = settings.model_dump(mode="json")
    found = estimate_ledger(ledger, workload.name, config, seed, tuple(placed), rehearsal.baselines)
    return replace(found, notes=("nothing: the run was executed here from beginning to end",)) if whole else found


def _number(nodes: str | None) -> int:
    """Return the number of nodes of a workload with one role."""
    from ..simulations.virtual_nodes import ONLY_ROLE
    from .cohort import node_counts

    counts = node_counts(nodes)
    if counts and (ONLY_ROLE not in counts or not counts[ONLY_ROLE]):
        raise ConfigError(f"--nodes {nodes} is not a number of nodes", hint="write --nodes 3")
    return counts.get(ONLY_ROLE, 1)


def _numbers(pairs: list[str] | tuple[str, ...]) -> dict[str, float]:
    from .settings import mapping

    try:
        return {name: float(value) for name, value in mapping(pairs, "--assume").items()}
    except ValueError as error:
        raise ConfigError(f"--assume: {error}", hint="write e.g. --assume tokens=13.3") from None
