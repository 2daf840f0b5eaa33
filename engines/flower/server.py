"""The server program of a Flower app: runs its ServerApp with a :class:`.FarshoreGrid`."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import Future, InvalidStateError
from typing import Any

from ...core.session import ServerSession
from ...wire.encodings import parse
from .archive import unpack_app
from .compat import (
    SUPERLINK_NODE_ID,
    make_context,
    make_run,
    redirect_flower_logging,
    run_server_app,
    set_server_identity,
)
from .config import FlowerRun
from .flower_ids import flower_id
from .grid import FarshoreGrid
from .project import Project
from .requirements import differences
from .server_metrics import ServerMetrics


def serve(session: ServerSession, settings: FlowerRun) -> dict[str, Any]:
    """Run the ServerApp in the run's directory; return the numbers of ``messages`` and ``failures``, and last metrics.

    Raises
    ------
    RefusedError
        This server does not accept the app, or the archive is damaged or has another hash.
    RunFailedError
        No nodes remain.
    RunCancelledError
        The run was cancelled; the app's thread ends at its next use of the grid.
    Exception
        Any exception of the app.
    """
    session.admit(settings.code)
    directory = session.run.directory / "flower"
    folder = unpack_app(settings.archive, settings.digest, directory / f"app-{settings.digest[:16]}")
    project = Project.read(folder)
    run_id, outcome = flower_id(session.run.id), Future[None]()
    set_server_identity(run_id)
    redirect_flower_logging()
    run = make_run(run_id, dict(settings.run_config))
    run_config = project.fused(settings.run_config)
    context = make_context(run_id, SUPERLINK_NODE_ID, {}, dict(run_config))

    evaluations = ServerMetrics(session)

    def fail(error: BaseException) -> None:
        with contextlib.suppress(InvalidStateError):
            outcome.set_exception(error)

    def run_app() -> None:
        try:
            with evaluations.watch():
                run_server_app(grid, context, str(folder), project.server)
        except BaseException as error:
            fail(error)
        else:
            with contextlib.suppress(InvalidStateError):
                outcome.set_result(None)

    rounds = run_config.get("num-server-rounds", 0)
    grid = FarshoreGrid(
        session,
        run,
        parse(settings.down_encoding),
        rounds=rounds if isinstance(rounds, int) else 0,
        on_failure=fail,
    )
    session.log(f"Flower app {settings.digest[:12]}…: {project.server} on the server, {project.client} on the nodes")
    for line in differences(project.requirements):
        session.log(f"the server: {line}")
    # In a thread, so that cancellation and the loss of all nodes end the run while the app computes or sleeps.
    app = threading.Thread(target=run_app, name="ServerApp", daemon=True)
    with contextlib.chdir(session.run.directory):
        app.start()
        try:
            outcome.result()
            app.join()
        finally:
            grid.close()
    metrics = {**grid.last_metrics, **evaluations.last}
    return {"messages": grid.sent, "failures": grid.failures, **({"metrics": metrics} if metrics else {})}
