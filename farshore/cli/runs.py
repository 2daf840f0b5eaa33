"""``farshore runs``: the runs of a server, their logs, and their fate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .connect import connected
from .output import Json, duration, emit, moment, say, table

if TYPE_CHECKING:
    from ..client.admin import AdminClient
    from ..proto.control_pb2 import RunInfo

app = typer.Typer(help="The runs of a server.", no_args_is_help=True)

RunId = Annotated[str, typer.Argument(metavar="RUN", help="The run's id.")]


@app.command("ls")
@connected
def ls(admin: AdminClient, json_: Json = False) -> None:
    """List runs, newest first, each with the reason for its state."""
    from .summary import as_dict

    found = admin.runs()
    if json_:
        emit([as_dict(run) for run in found])
        return
    columns = ("run", "method", "state", "progress", "nodes", "created", "took", "reason")
    table(columns, [_row(run) for run in found], "no run yet; see 'farshore run --help'")


@app.command("show")
@connected
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
