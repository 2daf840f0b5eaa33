"""The server's side: it runs a ServerApp with a Grid of ours."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import Future, InvalidStateError
from typing import Any

from ...core.session import ServerSession
from ...wire.encodings import parse
from .archive import unpack_app
from .compat import SUPERLINK_NODE_ID, log_through_ours, make_context, make_run, run_server_app, take_identity
from .config import FlowerRun
from .grid import FarshoreGrid
from .numbers import number_of
from .project import Project


def serve(session: ServerSession, settings: FlowerRun) -> dict[str, Any]:
    """Run a ServerApp to its end, in the run's directory; returns how many messages it sent and how many failed.

    Raises
    ------
    RefusedError
        This server does not accept the app, or the archive is not what it should be.
    RunFailedError
        No node is left.
    RunCancelledError
        The run was cancelled; the app's thread ends at its next use of the grid.
    Exception
        Whatever the app raises.
    """
    session.admit(settings.code)
    home = session.run.directory / "flower"
    folder = unpack_app(settings.archive, settings.digest, home / f"app-{settings.digest[:16]}")
    project = Project.read(folder)
    number, outcome = number_of(session.run.id), Future[None]()
    take_identity(number)
    log_through_ours()
    run = make_run(number, dict(settings.run_config))
    run_config = project.fused(settings.run_config)
    context = make_context(number, SUPERLINK_NODE_ID, {}, dict(run_config))

    def failed(error: BaseException) -> None:
        with contextlib.suppress(InvalidStateError):
            outcome.set_exception(error)

    def play() -> None:
        try:
            run_server_app(grid, context, str(folder), project.server)
        except BaseException as error:
            failed(error)
        else:
            with contextlib.suppress(InvalidStateError):
                outcome.set_result(None)

    rounds = run_config.get("num-server-rounds", 0)
    grid = FarshoreGrid(
        session,
        run,
        parse(settings.down_encoding),
        rounds=rounds if isinstance(rounds, int) else 0,
        on_failure=failed,
    )
    session.log(f"Flower app {settings.digest[:12]}…: {project.server} here, {project.client} on the nodes")
    # In a thread, so that a run can be cancelled, or found to have lost its nodes, while the app computes or sleeps.
    app = threading.Thread(target=play, name="ServerApp", daemon=True)
    with contextlib.chdir(session.run.directory):
        app.start()
        try:
            outcome.result()
            app.join()
        finally:
            grid.close()
    return {"messages": grid.sent, "failures": grid.failures}
