"""``farshore runs``: the runs of a server, their logs, and their fate."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .connect import connected
from .output import Json, duration, emit, moment, say, table
from .run_lookup import Home, RunName

if TYPE_CHECKING:
    from ..client.admin import AdminClient
    from ..proto.control_pb2 import RunInfo
    from ..runs.archive import Moved

app = typer.Typer(help="The runs of a server.", no_args_is_help=True)

RunId = Annotated[str, typer.Argument(metavar="RUN", help="The run's id.")]


def _listed_from_disk(home: Path | None, json_: bool = False) -> bool:
    """List the runs that lie on this machine, where no server answers; whether there are any."""
    found = _others(home, ())
    if found:
        _list(found, json_)
    return bool(found)


@app.command("ls")
@partial(connected, from_disk=_listed_from_disk)
def ls(admin: AdminClient, json_: Json = False) -> None:
    """List runs, newest first, each with the reason for its state; imported ones too."""
    found = list(admin.runs())
    if admin.home is not None:
        found += _others(admin.home, {run.id for run in found})
    _list(sorted(found, key=lambda run: -run.created), json_)


def _others(home: Path | None, known: Collection[str]) -> list[RunInfo]:
    """Runs of this machine that its server does not know, as their directories tell of them."""
    from .run_lookup import on_disk
    from .summary import stored

    return [stored(run) for run in on_disk(home, known)]


def _list(found: Sequence[RunInfo], json_: bool) -> None:
    from .summary import as_dict

    if json_:
        emit([as_dict(run) for run in found])
        return
    columns = ("run", "method", "state", "progress", "nodes", "created", "took", "reason")
    table(columns, [_row(run) for run in found], "no run yet; see 'farshore run --help'")


def _shown_from_disk(home: Path | None, run_id: str, json_: bool = False) -> bool:
    """Show a run that lies on this machine but that no server of it knows, an imported one; whether there is one."""
    from ..core.errors import NotFoundError
    from .run_lookup import find
    from .summary import as_dict, describe, stored

    try:
        found = stored(find(run_id, home))
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
    """Show one run: settings, result, and what it cost on the wire."""
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
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Stay until the run ends.")] = False,
    json_: Json = False,
) -> None:
    """Print a run's log."""
    from .follow import logs as lines

    for line in lines(admin, run_id, keep=follow):
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
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Do not follow it.")] = False,
    json_: Json = False,
) -> None:
    """Go on with a run from its last checkpoint, and follow it."""
    from .run import attend

    attend(admin, admin.resume(run_id), detach=detach, as_json=json_)


@app.command("export")
def export(
    run: RunName,
    file: Annotated[Path, typer.Argument(metavar="FILE.tar", help="Where to write it.")],
    checkpoints: Annotated[
        bool, typer.Option("--checkpoints/--no-checkpoints", help="With what a killed run goes on from.")
    ] = True,
    home: Home = None,
    json_: Json = False,
) -> None:
    """Write a run's directory on this machine as one file, for another machine to import."""
    from ..runs.archive import export_run
    from .run_lookup import find

    path = file.expanduser().absolute()
    _moved("exported", export_run(find(run, home), path, checkpoints=checkpoints), as_json=json_)


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE.tar", help="What 'runs export' wrote.")],
    as_: Annotated[str | None, typer.Option("--as", metavar="ID", help="The run's id here [the one it has].")] = None,
    sha256: Annotated[str, typer.Option(metavar="HEX", help="What 'runs export' said of the file.")] = "",
    max_gb: Annotated[float, typer.Option(min=0.001, help="Most bytes that it may unpack to, 10^9.")] = 64.0,
    home: Home = None,
    json_: Json = False,
) -> None:
    """Unpack an exported run on this machine, so that report, compare, export, runs ls and runs show find it."""
    from ..core.paths import server_home
    from ..runs.archive import import_run

    folder = (home or server_home()).expanduser() / "runs"
    limits = {"sha256": sha256, "total_bytes": int(max_gb * 1e9)}
    _moved("imported", import_run(file.expanduser(), folder, name=as_, **limits), as_json=json_)  # type: ignore[arg-type]


@app.command("metrics")
def metrics(
    run: RunName,
    to: Annotated[str, typer.Option("--to", metavar="csv|tensorboard|mlflow", help="What to write them for.")],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where files go [./RUN-figures].")] = None,
    home: Home = None,
    json_: Json = False,
) -> None:
    """Write the figures of a run on this machine for spreadsheets, TensorBoard or MLflow."""
    from ..runs.sinks import send
    from .run_lookup import find

    found = find(run, home)
    folder = (out or Path(f"{found.info['id']}-figures")).expanduser()
    count = send(found, to, folder)
    if json_:
        emit({"event": "sent", "run": found.info["id"], "to": to, "lines": count, "folder": str(folder)})
    else:
        say(f"run {found.info['id']}: figures of {count} rounds or steps for {to} in {folder}")


def _moved(what: str, moved: Moved, *, as_json: bool) -> None:
    if as_json:
        emit({"event": what, **asdict(moved)})
        return
    from ..reports.units import size

    say(f"{what} run {moved.id}: {moved.files} files, {size(moved.bytes)}")
    say(f"  {moved.path}")
    say(f"  sha256 {moved.sha256}")


def _row(run: RunInfo) -> tuple[object, ...]:
    return (
        run.id,
        run.workload,
        run.state,
        f"{run.done}/{run.total}" if run.total else "–",
        ", ".join(run.nodes) or "–",
        moment(run.created),
        duration(run.ended - run.started) if run.started and run.ended else "–",
        run.reason or "–",
    )
