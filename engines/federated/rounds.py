"""The server's side of a federated run: draw a cohort, have it train, make the next state of the sum, score it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from ...core.errors import RunFailedError
from ...core.session import ServerSession
from ...runs.history import History
from .client_pool import ClientPool, RoundResult
from .config import FederatedConfig
from .round_recorder import RoundRecorder
from .task import Task
from .task_hooks import refined
from .tree import Part
from .update_validation import is_finite


class Rounds:
    """A federated run on the server.

    Parameters
    ----------
    session : ServerSession
    task : Task
    fleet : Fleet
    schedule : FederatedConfig
    """

    def __init__(self, session: ServerSession, task: Task, fleet: ClientPool, schedule: FederatedConfig) -> None:
        if schedule.per_round > fleet.population:
            raise RunFailedError(
                f"{schedule.per_round} clients a round are more than the {fleet.population} that there are",
                hint="lower per_round, or let more nodes join",
            )
        self._session, self._task, self._fleet, self._schedule = session, task, fleet, schedule
        self._flat = task.model()
        self._method = task.method(self._flat)
        self.state: Part = self._method.start(self._flat)
        self._history = History(session.run.directory, session.resume_step or 0)
        if session.resume_step is not None:
            self.state, _ = session.load_checkpoint(session.resume_step)
            fleet.resume(self._history.entries)
        self._chronicle = RoundRecorder(session, task, self._flat, schedule)

    def run(self) -> list[dict[str, Any]]:
        """Run to the last round; returns one entry per round."""
        with self._history as history:
            for round_index in range(len(history.entries) + 1, self._schedule.rounds + 1):
                self._session.check_cancelled()
                self._round(round_index)
        return history.entries

    def _round(self, round_index: int) -> None:
        seed, began = self._session.run.seed, time.monotonic()
        chosen = self._fleet.draw(seed, round_index, self._schedule.per_round)
        gathered = self._fleet.round(round_index, chosen, self._method.sent(self.state), self._method)
        made = time.monotonic()
        entry = self._entry(round_index, chosen, gathered)
        self._step(round_index, gathered)
        spent = {"aggregate": 0.0, **gathered.seconds}
        spent["aggregate"] += time.monotonic() - made
        spent["test"] = self._chronicle.complete(entry, self.state)
        self._history.append(entry)
        figures = self._chronicle.tell(entry, spent)
        if self._chronicle.checkpoint_due(round_index):
            self._fleet.keep(round_index)
            self._chronicle.keep(entry, self.state)
            self._history.sync()
            self._session.save_checkpoint(round_index, self.state, {})
        clients = {"ok": len(gathered.replies), "late": len(gathered.late)}
        clients["failed"] = len(chosen) - sum(clients.values())
        seconds = time.monotonic() - began
        self._session.progress(round_index, self._schedule.rounds, unit="round", seconds=seconds, **clients, **figures)

    def _entry(self, round_index: int, chosen: Sequence[int], gathered: RoundResult) -> dict[str, Any]:
        entry = {
            "round": round_index,
            "cohort": list(chosen),
            "missing": {str(client): why for client, why in gathered.missing.items()},
            **gathered.figures,
            **self._chronicle.replies(gathered.replies),
        }
        if gathered.total is not None:
            apart = self._method.divergence({**self.state, **gathered.seen}, gathered.total)
            entry |= {} if apart is None else {"divergence": apart}
        return entry

    def _step(self, round_index: int, gathered: RoundResult) -> None:
        """Make the next state of the sum; keep the present one where there is no sum to speak of."""
        count, least = len(gathered.replies), self._schedule.least
        if gathered.total is None or count < least:
            self._session.log(
                f"round {round_index}: {count} of at least {least} replies came; the model stays as it was"
            )
            return
        seen = {**self.state, **gathered.seen}
        state = restored(self._method.finish(seen, gathered.total, self._fleet.population), self.state, seen)
        state = refined(self._task, self._flat, state, round_index)
        if all(is_finite(array) for array in state.values() if array.dtype.kind == "f"):
            self.state = state
        else:
            self._session.log(f"round {round_index}: the sum of the updates is not finite; the model stays as it was")


def restored(state: Part, before: Part, seen: Part) -> Part:
    """Give back what the way down lost: steps smaller than its rounding would never add up otherwise."""
    for name, array in seen.items():
        if array is not before[name] and array.dtype.kind == "f":
            state[name] = state[name] + (before[name] - array)
    return state
