"""Where a sweep runs: on the nodes of a server, or in processes of this machine."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import ConfigError, NotFoundError
from ..core.nodes import nearest_name
from .output import note
from .sweep_output import Outputs

if TYPE_CHECKING:
    from ..client.admin import AdminClient
    from ..core.nodes import RoleRequest
    from ..proto.control_pb2 import NodeInfo, RunInfo
    from ..simulations.sweeps.config import SweepConfig

#: States of runs that can be resumed.
_UNFINISHED = ("failed", "interrupted", "cancelled")
_METHOD = "sweep"


def run_here(
    config: SweepConfig, data: Mapping[str, Path], out: Path | None, *, resume: bool, outputs: Outputs
) -> None:
    """Run a sweep in worker processes of this machine, and show its results.

    Raises
    ------
    ConfigError
        ``out`` has a sweep already.
    NotFoundError
        There is nothing to resume.
    RunFailedError
        Items failed.
    """
    from ..core.workloads import load
    from ..simulations.node_simulation import NodeSimulation
    from .follow import check_items
    from .progress import Meter, display
    from .run import interrupted_by_signals

    directory = _directory(config, out, resume)
    meter = Meter()
    try:
        with interrupted_by_signals(), display(f"sweep {directory.name}", as_json=outputs.as_json) as shown:

            def on_progress(done: int, total: int, values: Mapping[str, float | str]) -> None:
                shown.show(meter.read(done, total, values, time.monotonic()))

            simulation = NodeSimulation(
                load(_METHOD), config, directory, {"local": "node"}, data=data, on_progress=on_progress
            )
            result = simulation.run()
    except KeyboardInterrupt:
        note("what is finished is kept; to continue, give the same command with --resume")
        raise
    outputs.show(result["table"], directory)
    check_items(result, f"sweep {directory.name}")


def _directory(config: SweepConfig, out: Path | None, resume: bool) -> Path:
    from ..core.paths import farshore_home
    from ..runs.ids import new_run_id

    sweeps = farshore_home() / "sweeps"
    if out is not None:
        directory = out.expanduser().resolve()
        if (directory / "run.json").exists() and not resume:
            raise ConfigError(f"{out} has a sweep already", hint="continue it with --resume, or choose another --out")
        return directory
    if not resume:
        return sweeps / f"{config.method}-{new_run_id()}"
    wanted = config.model_dump(mode="json")
    for path in sorted(sweeps.glob("*/run.json"), key=lambda path: path.stat().st_mtime, reverse=True):
        found = path.parent
        if json.loads(path.read_text()).get("config") == wanted and not (found / "result.json").exists():
            return found
    raise NotFoundError(
        "no unfinished sweep with these settings is on this machine", hint="leave out --resume to start it"
    )


def run_on_nodes(
    admin: AdminClient,
    config: SweepConfig,
    data: Mapping[str, str],
    requests: Sequence[RoleRequest],
    *,
    wait: str | None,
    resume: bool,
    outputs: Outputs,
) -> None:
    """Submit a sweep, or resume it, and show its results.

    Raises
    ------
    ConfigError
        No connected node can run the method, and ``wait`` is not given.
    NotFoundError
        There is nothing to resume.
    RunFailedError, RunCancelledError
        The run failed or was cancelled, or items failed.
    """
    from .run import follow_to_end
    from .settings import seconds

    values = config.model_dump(mode="json")
    if wait is None:
        check_nodes(config, admin.nodes())
    if resume:
        run = admin.resume(_unfinished(admin, values).id)
    else:
        wait_seconds = seconds(wait, "--wait") if wait is not None else 0.0
        run = admin.submit(_METHOD, values, roles=requests, seed=0, data=data, wait_seconds=wait_seconds)

    def show(ended: RunInfo) -> None:
        outputs.show(*_table_of(ended))

    follow_to_end(admin, run, detach=False, as_json=outputs.as_json, print_own=show)


def _unfinished(admin: AdminClient, values: Mapping[str, Any]) -> RunInfo:
    for listed in admin.runs():
        if listed.workload == _METHOD and listed.state in _UNFINISHED:
            run = admin.run(listed.id)
            if json.loads(run.config_json) == values:
                return run
    raise NotFoundError("the server has no unfinished sweep with these settings", hint="leave out --resume to start it")


def _table_of(run: RunInfo) -> tuple[dict[str, Any] | None, Path | None]:
    """Return the table of a finished sweep, and its directory if that is on this machine."""
    from ..simulations.sweeps.summary import TABLE
    from .follow import result

    directory = Path(run.directory)
    if (directory / TABLE).is_file():
        table: dict[str, Any] = json.loads((directory / TABLE).read_text())
        return table, directory
    found = result(run).get("table")
    return (found if isinstance(found, dict) else None), None


def check_nodes(config: SweepConfig, nodes: Sequence[NodeInfo]) -> None:
    """Raise :class:`ConfigError` unless a connected node can run the method; the hint says what is missing."""
    from ..core.workloads import load

    workload: Any = load(_METHOD)
    needed, data = workload.node_packages(config), workload.node_data(config)
    connected = [node for node in nodes if node.state == "connected"]
    if not connected:
        raise ConfigError(
            "no node is connected to the server", hint="start one with 'farshore node join', or use --local"
        )
    reasons = {node.name: _lacks(config.method, node, needed, data) for node in connected}
    if all(reasons.values()):
        name, reason = next(iter(reasons.items()))
        others = f", and neither can {len(reasons) - 1} others" if len(reasons) > 1 else ""
        raise ConfigError(
            f"no connected node can run '{config.method}': {name} {reason}{others}", hint="or use --local"
        )


def _lacks(method: str, node: NodeInfo, packages: Sequence[str], data: Sequence[Sequence[str]]) -> str:
    """Return what a node lacks; empty if it can run the method."""
    from ..core.packages import extras_of

    for name in (_METHOD, method):
        if node.profile.methods and name not in node.profile.methods:
            return f"does not know the method '{name}'"
    missing = [name for name in packages if node.profile.packages and name not in node.profile.packages]
    if missing:
        return f"lacks {' and '.join(missing)} (extras {extras_of(missing)})"
    for names in data:
        if not set(names) & set(node.data):
            near = nearest_name(names[0], node.data)
            return f"has no data set '{names[0]}'{f' ({near})' if near else ''}"
    return ""
