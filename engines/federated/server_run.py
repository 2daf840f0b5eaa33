"""The server's side of a federated run, as far as it is the same for all schedules."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from ...core.session import ServerSession
from ...runs.history import History
from .client_pool import ClientPool
from .compute import resident_model
from .config import FederatedConfig
from .round_recorder import RoundRecorder
from .task import Task
from .tree import NamedArrays


class ServerRun(ABC):
    """Model, method, history and checkpoints of a run on the server.

    Parameters
    ----------
    session : ServerSession
    task : Task
    pool : ClientPool
    schedule : FederatedConfig

    Attributes
    ----------
    state : dict of arrays
        The server's current state.

    Raises
    ------
    ConfigError, RunFailedError
        The schedule is not possible with this method and population; see the subclasses.
    """

    def __init__(self, session: ServerSession, task: Task, pool: ClientPool, schedule: FederatedConfig) -> None:
        self._session, self._task, self._pool, self._schedule = session, task, pool, schedule
        self._flat = resident_model(task, schedule)
        self._method = task.method(self._flat)
        self.state: NamedArrays = self._method.start(self._flat)
        self._history = History(session.run.directory, session.resume_step or 0)
        if session.resume_step is not None:
            pool.resume(self._history.entries)
        self._prepare()
        self._recorder = RoundRecorder(session, task, self._flat, schedule)
        if session.resume_step is not None:
            self._restore(*session.load_checkpoint(session.resume_step))

    @property
    def _next(self) -> int:
        """The round that is to be recorded next."""
        return len(self._history.entries) + 1

    @abstractmethod
    def run(self) -> list[dict[str, Any]]:
        """Run all remaining rounds; return the history, one entry per round."""

    @abstractmethod
    def _prepare(self) -> None:
        """Check that the schedule is possible, and create its own state, before a checkpoint is restored."""

    def _restore(self, tensors: NamedArrays, meta: Mapping[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.state = tensors

    def _checkpoint(self) -> tuple[NamedArrays, dict[str, Any]]:
        """Return the tensors and metadata from which :meth:`_restore` continues."""
        return self.state, {}

    def _record(self, entry: dict[str, Any], seconds: Mapping[str, float]) -> dict[str, float]:
        """Complete and store a round's entry, and save a checkpoint if one is due; return the round's metrics."""
        round_index = self._next
        tested = self._recorder.complete_entry(entry, self.state)
        self._history.append(entry)
        metrics = self._recorder.write_metrics(entry, {**seconds, "test": tested})
        if self._recorder.checkpoint_due(round_index):
            self._pool.save_client_states(round_index)
            self._recorder.write_states(entry, self.state)
            self._history.sync()
            self._session.save_checkpoint(round_index, *self._checkpoint())
        return metrics
