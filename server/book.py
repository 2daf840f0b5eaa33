"""The book of runs: every run this server knows, in memory, in the store and in its run directory."""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..core.errors import FarshoreError
from ..core.files import private_folder
from ..runs.directory import RunDirectory
from .options import ServeOptions
from .run import ENDED, Run
from .run_log import RunLog

_log = logging.getLogger(__name__)
_SAVED = (
    "state",
    "reason",
    "started",
    "ended",
    "epoch",
    "result_json",
    "done",
    "total",
    "progress",
)


class Book:
    """The runs of one server, oldest first.

    Parameters
    ----------
    options : ServeOptions
    """

    def __init__(self, options: ServeOptions) -> None:
        self._folder = options.runs_directory or options.home / "runs"
        self._runs: dict[str, Run] = {}

    def __iter__(self) -> Iterator[Run]:
        return iter(list(self._runs.values()))

    def find(self, run_id: str) -> Run | None:
        """The run of that id."""
        return self._runs.get(run_id)

    def waiting(self) -> list[Run]:
        """Runs that wait for nodes, oldest first."""
        return [run for run in self._runs.values() if run.state == "waiting"]

    def open(self) -> list[Run]:
        """Read the runs of earlier starts; returns those that still wait for their first nodes.

        A run that was under way when the server went down is interrupted now.
        """
        private_folder(self._folder)
        found = [run for path in self._folder.iterdir() if (run := _read(path)) is not None]
        for run in sorted(found, key=lambda run: (run.created, run.id)):
            self._runs[run.id] = run
            if run.state not in ENDED and (run.state != "waiting" or run.nodes):
                run.state, run.ended = "interrupted", time.time()
                run.reason = "the server went down while it ran; 'farshore runs resume' continues it"
                self.save(run)
        return [run for run in self._runs.values() if run.state == "waiting"]

    def create(
        self, *, workload: str, config_json: str, seed: int, count: int, wanted: tuple[str, ...], data: dict[str, str]
    ) -> Run:
        """Make a new run and its directory."""
        run_id = secrets.token_hex(4)
        path = self._folder / run_id
        created = time.time()
        info = {
            "id": run_id,
            "workload": workload,
            "config": json.loads(config_json),
            "seed": seed,
            "nodes": [],
            "created": created,
            "count": count,
            "wanted": list(wanted),
            "data": data,
            "state": "waiting",
        }
        RunDirectory.create(path, info)
        run = Run(run_id, workload, config_json, seed, path, RunLog(path / "log.txt"))
        run.count, run.wanted, run.data, run.created = count, wanted, data, created
        self._runs[run_id] = run
        return run

    def save(self, run: Run) -> None:
        """Store what has changed of a run, and tell its followers."""
        values: dict[str, Any] = {name: getattr(run, name) for name in _SAVED}
        RunDirectory(run.directory).update(**values, nodes=list(run.nodes))
        run.notify()

    def close(self) -> None:
        """Nothing is open between calls; here for symmetry with :meth:`open`."""


def _read(path: Path) -> Run | None:
    try:
        info = RunDirectory.open(path).info
        run = Run(
            info["id"], info["workload"], json.dumps(info["config"]), info["seed"], path, RunLog(path / "log.txt")
        )
        run.nodes, run.wanted = tuple(info["nodes"]), tuple(info.get("wanted", ()))
        run.count, run.data, run.created = info.get("count", 1), info.get("data", {}), info["created"]
        for name in _SAVED:
            if name in info:
                setattr(run, name, info[name])
    except (FarshoreError, KeyError, TypeError) as error:
        _log.warning("left out what is no run of this server: %s", error)
        return None
    return run
