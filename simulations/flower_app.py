"""A Flower app on simulated nodes: its two halves in this process, and a run directory as a real run has one."""

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

#: Loggers of an app's run: what the programs say, and what Flower says.
_LOGGERS = ("farshore.simulations.in_process", "flwr")


def flower_run(app: Path, changes: Mapping[str, Value], **more: Any) -> FlowerRun:
    """The configuration of a run of the app in a folder.

    Parameters
    ----------
    app : Path
    changes : Mapping
        Of the app's own configuration.
    **more
        Further settings of :class:`FlowerRun`.

    Raises
    ------
    ConfigError
        It is no Flower app, is too large, or has no such setting.
    """
    project = Project.read(app)
    project.fused(changes)
    archive = pack_app(app, project.flower)
    return FlowerRun(archive=archive.text, digest=archive.digest, run_config=dict(changes), **more)


def simulate_app(
    config: FlowerRun, directory: Path, nodes: int, *, seed: int = 0, on_progress: OnProgress | None = None
) -> dict[str, Any]:
    """Run an app with ``nodes`` simulated nodes; returns the result.

    Nodes compute one after another. They and the server share what a process has one of, such as global random
    generators; what the app imports from its folder is forgotten at the end.

    Raises
    ------
    FarshoreError
        As for a real run.
    Exception
        Whatever the app's ServerApp raises.
    """
    names = [f"client-{i}" for i in range(nodes)]
    info = {"workload": WORKLOAD.name, "config": config.model_dump(mode="json"), "seed": seed, "nodes": names}
    run = RunDirectory.create(directory, {"id": directory.name, **info, "simulated": True})
    with ExitStack() as stack:
        ledger = stack.enter_context(run.open_ledger())
        metrics = run.open_metrics()
        stack.callback(metrics.close)
        stack.enter_context(_logged(run.log))
        stack.enter_context(_forgotten(directory))
        programs = InProcessRun(
            *(WORKLOAD, config, directory, names, seed),
            recorder=ledger.record,
            on_progress=on_progress,
            on_metrics=metrics.write,
        )
        result = programs.run()
    run.write_result(result)
    return result


@contextmanager
def _logged(path: Path) -> Iterator[None]:
    """What the programs and Flower say goes to the run's log."""
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
def _forgotten(directory: Path) -> Iterator[None]:
    """Modules and import paths of an app do not outlive its run: the next one may have the same names."""
    try:
        yield
    finally:
        sys.path[:] = [entry for entry in sys.path if not Path(entry).is_relative_to(directory)]
        for name, module in list(sys.modules.items()):
            if Path(getattr(module, "__file__", None) or "/").is_relative_to(directory):
                del sys.modules[name]
