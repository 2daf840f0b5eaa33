"""Entry point of the command line: the command tree, and the conversion of errors to exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from ..core.errors import ExitCode
from . import (
    apps,
    certs,
    compare,
    dashboard,
    demo,
    doctor,
    estimate,
    export,
    init,
    methods,
    node,
    nodes,
    report,
    run,
    runs,
    server,
    simulate,
    sweep,
)
from .failures import report_error
from .plain_help import unescape_help

app = typer.Typer(
    name="farshore",
    help="Train models across a cloud server and edge devices, with a ledger of every byte transferred.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(requested: bool) -> None:
    if requested:
        from .. import __version__

        typer.echo(f"farshore {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and debug logs.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    if debug:
        import logging

        logging.basicConfig(level=logging.DEBUG, format="%(asctime)s %(name)s %(levelname)s %(message)s")


app.command("demo")(demo.demo)
app.command("init")(init.init)
app.command("simulate")(simulate.simulate)
app.command("sweep")(sweep.sweep)
app.add_typer(server.app, name="server")
app.add_typer(node.app, name="node")
app.add_typer(nodes.app, name="nodes")
app.command("run")(run.run)
app.add_typer(runs.app, name="runs")
app.command("report")(report.report)
app.command("compare")(compare.compare)
app.command("estimate")(estimate.estimate)
app.command("export")(export.export)
app.command("dashboard")(dashboard.dashboard)
app.command("methods")(methods.methods)
app.add_typer(apps.app, name="apps")
app.add_typer(certs.app, name="certs")
app.command("doctor")(doctor.doctor)


def execute(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code. Never raises; prints at most one error."""
    debug = "--debug" in arguments
    if not debug:
        # Keeps gRPC's core from writing to standard error in addition to our one line.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        command = unescape_help(typer.main.get_command(app))
        result = command(list(arguments), prog_name="farshore", standalone_mode=False)
        if result == ExitCode.INTERRUPTED:  # click's result of a KeyboardInterrupt
            raise KeyboardInterrupt
    except BaseException as error:
        return report_error(error, debug=debug)
    return result if isinstance(result, int) else 0


def main() -> None:
    """Run the console script ``farshore``."""
    sys.exit(execute(sys.argv[1:]))
