"""Repository of a server's runs: in memory, in the run store and as run directories."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path

from ..core.errors import ConfigError, StorageError
from ..core.nodes import DEFAULT_ROLE, RoleCount, RoleRequest
from ..runs.archive import remove_leftovers
from ..runs.directory import RunDirectory
from ..runs.ids import new_run_id
from ..runs.states import ENDED
from ..runs.store import RunRow, RunStore
from .role_requests import from_json, to_json
from .run import Run
from .run_log import RunLog

logger = logging.getLogger(__name__)


class RunRepository:
    """The runs of one server, oldest first.

    Parameters
    ----------
    store : RunStore
    folder : Path
        Directory for run directories.
    """

    def __init__(self, store: RunStore, folder: Path) -> None:
        self._store = store
        self._folder = folder
        self._runs: dict[str, Run] = {}
        self._last_events: dict[str, tuple[str, int, str]] = {}
        self._cohorts: dict[str, tuple[str, ...]] = {}  # as last written to run.json

    def __iter__(self) -> Iterator[Run]:
        return iter(self.all())

    def all(self) -> list[Run]:
        """Return all runs, oldest first; later calls return longer lists with the same beginning."""
        return list(self._runs.values())

    def find(self, run_id: str) -> Run | None:
        """Return the run with this id, or None."""
        return self._runs.get(run_id)

    def waiting(self) -> list[Run]:
        """Return the runs that wait for nodes, oldest first."""
        return [run for run in self._runs.values() if run.state == "waiting"]

    def load(self) -> list[Run]:
        """Load the runs from the store; returns those that still wait for their first nodes.

        Runs that were active when the server stopped are marked as interrupted.
        """
        remove_leftovers(self._folder)
        for row in self._store.runs():
            run = _run(row)
            self._runs[run.id] = run
            self._last_events[run.id] = run.state, run.epoch, run.reason
            if run.state not in ENDED and (run.state != "waiting" or run.nodes):
                run.state, run.ended = "interrupted", time.time()
                run.reason = "the server stopped while it was running; 'farshore runs resume' continues it"
                self.save(run)
        return self.waiting()

    def create(
        self,
        *,
        workload: str,
        config_json: str,
        seed: int,
        requests: tuple[RoleRequest, ...],
        data: dict[str, str],
        wait_seconds: float = 0.0,
    ) -> Run:
        """Create a run and its directory.

        Raises
        ------
        ConfigError
            The configuration is not a JSON object.
        StorageError
            The directory or the store cannot be written.
        """
        try:
            config = json.loads(config_json)
        except ValueError as error:
            raise ConfigError(f"the configuration is not valid JSON: {error}") from error
        if not isinstance(config, dict):
            raise ConfigError("the configuration is not a JSON object")
        run_id = new_run_id()
        path = self._folder / run_id
        created = time.time()
        info = {"id": run_id, "workload": workload, "config": config, "seed": seed, "nodes": [], "created": created}
        RunDirectory.create(path, info)
        row = self._store.create_run(
            workload,
            id=run_id,
            config_json=config_json,
            seed=seed,
            directory=str(path),
            count=sum(request.count.least for request in requests),
            requested_nodes=tuple(name for request in requests for name in request.nodes),
            roles_json=to_json(requests, {}),
            data=data,
            created=created,
            wait_seconds=wait_seconds,
        )
        run = self._runs[run_id] = _run(row)
        return run

    def save(self, run: Run) -> None:
        """Store the run's state and notify its followers."""
        self._store.save_run(_row(run))
        if run.state == "starting" or (run.state == "running" and self._cohorts.get(run.id) != run.nodes):
            self._cohorts[run.id] = run.nodes
            roles = {name: role for name, role in run.cohort.items() if role != DEFAULT_ROLE}
            update = {"nodes": list(run.nodes), "epoch": run.epoch, **({"roles": roles} if roles else {})}
            RunDirectory(run.directory).update(**update)
        self._write_event(run)
        run.notify()

    def _write_event(self, run: Run) -> None:
        """Append a changed state to the run's events; a failed write is only logged and does not end the run."""
        event = run.state, run.epoch, run.reason
        if self._last_events.get(run.id) == event:
            return
        self._last_events[run.id] = event
        try:
            events = RunDirectory(run.directory).open_events()
            try:
                events.write(run.state, epoch=run.epoch, reason=run.reason, nodes=list(run.nodes))
            finally:
                events.close()
        except StorageError as error:
            logger.warning("run %s: %s", run.id, error)


def _run(row: RunRow) -> Run:
    directory = Path(row.directory)
    run = Run(row.id, row.workload, row.config_json, row.seed, directory, RunLog(directory / "log.txt"))
    if row.roles_json:
        run.requests, run.cohort = from_json(row.roles_json)
    else:  # a row of an older server, which knew one role
        run.requests = (RoleRequest(DEFAULT_ROLE, RoleCount(row.count, row.count), row.requested_nodes),)
        run.cohort = dict.fromkeys(row.nodes, DEFAULT_ROLE)
    run.data = dict(row.data)
    run.state, run.reason, run.epoch = row.state, row.reason, row.epoch
    run.created, run.started, run.ended = row.created, row.started, row.ended
    run.wait_seconds = row.wait_seconds
    run.done, run.total, run.result_json = row.done, row.total, row.result_json
    return run


def _row(run: Run) -> RunRow:
    return RunRow(
        id=run.id,
        workload=run.workload,
        config_json=run.config_json,
        seed=run.seed,
        directory=str(run.directory),
        count=sum(request.count.least for request in run.requests),
        requested_nodes=run.requested_nodes,
        roles_json=to_json(run.requests, run.cohort),
        data=run.data,
        state=run.state,
        reason=run.reason,
        created=run.created,
        started=run.started,
        ended=run.ended,
        wait_seconds=run.wait_seconds,
        nodes=run.nodes,
        epoch=run.epoch,
        done=run.done,
        total=run.total,
        result_json=run.result_json,
    )
