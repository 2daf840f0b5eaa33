"""``farshore runs``: list, show, cancel, resume and transfer the runs of a server."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.errors import ConfigError
from .connect import connected
from .output import Json, duration, emit, local_time, say, table
from .run_lookup import Home, RunName

if TYPE_CHECKING:
    from ..client.admin import AdminClient
    from ..proto.control_pb2 import RunInfo
    from ..runs.archive import RunTransfer

app = typer.Typer(help="The runs of a server.", no_args_is_help=True)

RunId = Annotated[str, typer.Argument(metavar="RUN", help="The run's id.")]


def _listed_from_disk(home: Path | None, json_: bool = False) -> bool:
    """List the runs on this machine if no server answers; returns whether there are any."""
    found = _runs_without_server(home, ())
    if found:
        _list(found, json_)
    return bool(found)


@app.command("ls")
@partial(connected, from_disk=_listed_from_disk)
def ls(admin: AdminClient, json_: Json = False) -> None:
    """List runs, newest first, with the reason for their state; includes imported runs."""
    found = list(admin.runs())
    if admin.home is not None:
        found += _runs_without_server(admin.home, {run.id for run in found})
    _list(sorted(found, key=lambda run: -run.created), json_)


def _runs_without_server(home: Path | None, known: Collection[str]) -> list[RunInfo]:
    """Read the runs on this machine that its server does not know from their directories."""
    from .run_lookup import runs_on_disk
    from .summary import run_info_from_disk

    return [run_info_from_disk(run) for run in runs_on_disk(home, known)]


def _list(found: Sequence[RunInfo], json_: bool) -> None:
    from .summary import as_dict

    if json_:
        emit([as_dict(run) for run in found])
        return
    columns = ("run", "method", "state", "progress", "nodes", "created", "took", "reason")
    table(columns, [_row(run) for run in found], "no runs yet; see 'farshore run --help'")


def _shown_from_disk(home: Path | None, run_id: str, json_: bool = False) -> bool:
    """Show a run on this machine that its server does not know, e.g. an imported one; returns whether it exists."""
    from ..core.errors import NotFoundError
    from .run_lookup import find_run
    from .summary import as_dict, describe, run_info_from_disk

    try:
        found = run_info_from_disk(find_run(run_id, home))
    except NotFoundError:
        return False
    if json_:
        emit(as_dict(found))
    else:
        describe(found)
    return True


@app.command("show")
@partial(connected, from_disk=_shown_from_disk)
def show(admin: AdminClient, run_id: RunId, json_: Json = False) -> None:
    """Show one run: settings, result and communication."""
    from .summary import as_dict, describe

    found = admin.run(run_id)
    if json_:
        emit(as_dict(found))
    else:
        describe(found)


@app.command("logs")
@connected
def logs(
    admin: AdminClient,
    run_id: RunId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Follow the log until the run ends.")] = False,
    json_: Json = False,
) -> None:
    """Print a run's log."""
    from .follow import logs as lines

    for line in lines(admin, run_id, wait=follow):
        if json_:
            emit({"line": line})
        else:
            say(line)


@app.command("cancel")
@connected
def cancel(admin: AdminClient, run_id: RunId, json_: Json = False) -> None:
    """Cancel a run."""
    from .summary import as_dict

    stopped = admin.cancel(run_id)
    if json_:
        emit(as_dict(stopped))
    else:
        say(f"run {stopped.id}: {stopped.state}{f' ({stopped.reason})' if stopped.reason else ''}")


@app.command("resume")
@connected
def resume(
    admin: AdminClient,
    run_id: RunId,
    from_start: Annotated[
        bool,
        typer.Option("--from-start", help="Start over; checkpoints are kept until the new attempt has passed them."),
    ] = False,
    from_step: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="Continue from this step, of which all programs have a checkpoint."),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return without following the run.")] = False,
    json_: Json = False,
) -> None:
    """Resume a run from its newest common checkpoint and follow it. A run never starts over unless you say so."""
    from .run import follow_to_end

    if from_start and from_step is not None:
        raise ConfigError("--from-start and --from-step cannot be combined", hint="give one of them")
    resumed = admin.resume(run_id, from_start=from_start, from_step=from_step)
    follow_to_end(admin, resumed, detach=detach, as_json=json_)


@app.command("export")
def export(
    run: RunName,
    file: Annotated[Path, typer.Argument(metavar="FILE.tar", help="Archive to write.")],
    checkpoints: Annotated[
        bool, typer.Option("--checkpoints/--no-checkpoints", help="Include the checkpoints.")
    ] = True,
    home: Home = None,
    json_: Json = False,
) -> None:
    """Write a run's directory on this machine to one archive, for import on another machine."""
    from ..runs.archive import export_run
    from .run_lookup import find_run

    path = file.expanduser().absolute()
    _print_transfer("exported", export_run(find_run(run, home), path, checkpoints=checkpoints), as_json=json_)


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE.tar", help="Archive written by 'runs export'.")],
    as_: Annotated[str | None, typer.Option("--as", metavar="ID", help="Id for the imported run [its own id].")] = None,
    sha256: Annotated[str, typer.Option(metavar="HEX", help="Expected SHA-256, as printed by 'runs export'.")] = "",
    max_gb: Annotated[float, typer.Option(min=0.001, help="Limit on the unpacked size, GB.")] = 64.0,
    home: Home = None,
    json_: Json = False,
) -> None:
    """Import an exported run, so that report, compare, export, runs ls and runs show find it."""
    from ..core.paths import server_home
    from ..runs.archive import import_run

    folder = (home or server_home()).expanduser() / "runs"
    limits = {"sha256": sha256, "total_bytes": int(max_gb * 1e9)}
    _print_transfer("imported", import_run(file.expanduser(), folder, name=as_, **limits), as_json=json_)  # type: ignore[arg-type]


@app.command("metrics")
def metrics(
    run: RunName,
    to: Annotated[str, typer.Option("--to", metavar="csv|tensorboard|mlflow", help="Output format.")],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Output folder [./RUN-figures].")] = None,
    home: Home = None,
    json_: Json = False,
) -> None:
    """Export the metrics of a run on this machine as CSV, or to TensorBoard or MLflow."""
    from ..runs.metrics_export import export_metrics
    from .run_lookup import find_run

    found = find_run(run, home)
    folder = (out or Path(f"{found.info['id']}-figures")).expanduser()
    count = export_metrics(found, to, folder)
    if json_:
        emit({"event": "sent", "run": found.info["id"], "to": to, "lines": count, "folder": str(folder)})
    else:
        say(f"run {found.info['id']}: metrics of {count} rounds or steps written for {to} to {folder}")


def _print_transfer(action: str, transfer: RunTransfer, *, as_json: bool) -> None:
    if as_json:
        emit({"event": action, **asdict(transfer)})
        return
    from ..reports.units import size

    say(f"{action} run {transfer.id}: {transfer.files} files, {size(transfer.bytes)}")
    say(f"  {transfer.path}")
    say(f"  sha256 {transfer.sha256}")


def _row(run: RunInfo) -> tuple[object, ...]:
    return (
        run.id,
        run.workload,
        run.state,
        f"{run.done}/{run.total}" if run.total else "–",
        ", ".join(run.nodes) or "–",
        local_time(run.created),
        duration(run.ended - run.started) if run.started and run.ended else "–",
        run.reason or "–",
    )
