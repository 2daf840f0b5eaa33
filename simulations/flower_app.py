"""Runs a Flower app on simulated nodes in this process, with the run directory of a distributed run."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ..engines.flower.archive import pack_app
from ..engines.flower.config import FlowerRun, Value
from ..engines.flower.project import Project
from ..engines.flower.workload import WORKLOAD
from ..runs.directory import RunDirectory
from .in_process import InProcessRun, OnProgress

#: Loggers whose messages go to the run's log: those of the programs and of Flower.
_LOGGERS = ("farshore.simulations", "flwr")


def flower_run(app: Path, overrides: Mapping[str, Value], **settings: Any) -> FlowerRun:
    """Build the run configuration of a Flower app.

    Parameters
    ----------
    app : Path
        Directory of the app.
    overrides : Mapping
        Values that replace those of the app's own configuration.
    **settings
        Further settings of :class:`FlowerRun`.

    Raises
    ------
    ConfigError
        The directory is not a Flower app, the app is too large, or it has no such setting.
    """
    project = Project.read(app)
    project.fused(overrides)
    archive = pack_app(app, project.flower)
    return FlowerRun(archive=archive.text, digest=archive.digest, run_config=dict(overrides), **settings)


def simulate_app(
    config: FlowerRun, directory: Path, nodes: int, *, seed: int = 0, on_progress: OnProgress | None = None
) -> dict[str, Any]:
    """Run an app on simulated nodes and return the result.

    Nodes compute one after another. Nodes and server share the state of the process, such as global random generators.
    Modules that the app imports from its directory are unloaded at the end.

    Parameters
    ----------
    config : FlowerRun
    directory : Path
        Run directory, created by this function.
    nodes : int
        Number of simulated nodes.
    seed : int
    on_progress : callable, optional
        Called with the progress that the server program reports.

    Raises
    ------
    FarshoreError
        As in a distributed run.
    Exception
        Any error of the app's ServerApp.
    """
    names = [f"client-{i}" for i in range(nodes)]
    run_info = {"workload": WORKLOAD.name, "config": config.model_dump(mode="json"), "seed": seed, "nodes": names}
    run = RunDirectory.create(directory, {"id": directory.name, **run_info, "simulated": True})
    with ExitStack() as stack:
        ledger = stack.enter_context(run.open_ledger())
        metrics = run.open_metrics()
        stack.callback(metrics.close)
        stack.enter_context(_log_to(run.log))
        stack.enter_context(restore_imports(directory))
        in_process_run = InProcessRun(
            *(WORKLOAD, config, directory, names, seed),
            recorder=ledger.record,
            on_progress=on_progress,
            on_metrics=metrics.write,
        )
        result = in_process_run.run()
    run.write_result(result)
    return result


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Write the messages of the programs and of Flower to the run's log within the context."""
    handler = logging.FileHandler(path, encoding="utf-8")
    loggers = [(logging.getLogger(name), logging.getLogger(name).level) for name in _LOGGERS]
    for logger, _ in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger, level in loggers:
            logger.removeHandler(handler)
            logger.setLevel(level)
        handler.close()


@contextmanager
def restore_imports(directory: Path) -> Iterator[None]:
    """Unload an app's modules and import paths at the end: the next app may use the same module names."""
    try:
        yield
    finally:
        sys.path[:] = [entry for entry in sys.path if not Path(entry).is_relative_to(directory)]
        for name, module in list(sys.modules.items()):
            if Path(getattr(module, "__file__", None) or "/").is_relative_to(directory):
                del sys.modules[name]
