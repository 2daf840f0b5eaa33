"""The server's side of a federated run: draw a cohort, have it train, make the next state of the sum, score it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...core.errors import RunFailedError
from ...core.session import ServerSession
from .config import FederatedConfig
from .fleet import Fleet, Gathered
from .task import Task
from .tree import Part


class Rounds:
    """A federated run on the server.

    Parameters
    ----------
    session : ServerSession
    task : Task
    fleet : Fleet
    schedule : FederatedConfig
    """

    def __init__(self, session: ServerSession, task: Task, fleet: Fleet, schedule: FederatedConfig) -> None:
        if schedule.per_round > fleet.population:
            raise RunFailedError(
                f"{schedule.per_round} clients a round are more than the {fleet.population} that there are",
                cure="lower per_round, or let more nodes join",
            )
        self._session, self._task, self._fleet, self._schedule = session, task, fleet, schedule
        self._flat = task.model()
        self._method = task.method(self._flat)
        self.state: Part = self._method.start(self._flat)
        self.history: list[dict[str, Any]] = []
        if session.resume_step is not None:
            self.state, meta = session.load_checkpoint(session.resume_step)
            self.history = list(meta["history"])
            fleet.resume(self.history)

    def run(self) -> list[dict[str, Any]]:
        """Run to the last round; returns one entry per round."""
        for number in range(len(self.history) + 1, self._schedule.rounds + 1):
            self._session.check_cancelled()
            self._round(number)
        return self.history

    def _round(self, number: int) -> None:
        seed, began = self._session.run.seed, time.monotonic()
        chosen = self._fleet.draw(seed, number, self._schedule.per_round)
        gathered = self._fleet.round(number, chosen, self._method.sent(self.state), self._method)
        self._step(number, gathered)
        entry = {"round": number, **_told(gathered, chosen)}
        last = number == self._schedule.rounds
        if last or number % self._schedule.eval_every == 0:
            entry |= self._task.evaluate(self._flat, self.state)
        self.history.append(entry)
        told = {"loss" if n == "train_loss" else n: v for n, v in entry.items()}
        figures = {n: v for n, v in told.items() if isinstance(v, float) and math.isfinite(v)}
        self._session.metrics(number, **figures)
        if last or number % self._schedule.checkpoint_every == 0:
            self._fleet.keep(number)
            self._session.save_checkpoint(number, self.state, {"history": self.history})
        clients = {"ok": len(gathered.replies), "late": len(gathered.late)}
        clients["failed"] = len(chosen) - sum(clients.values())
        seconds = time.monotonic() - began
        self._session.progress(number, self._schedule.rounds, unit="round", seconds=seconds, **clients, **figures)

    def _step(self, number: int, gathered: Gathered) -> None:
        """Make the next state of the sum; keep the present one where there is no sum to speak of."""
        count, least = len(gathered.replies), self._schedule.least
        if gathered.total is None or count < least:
            self._session.log(f"round {number}: {count} of at least {least} replies came; the model stays as it was")
            return
        seen = {**self.state, **gathered.seen}
        state = restored(self._method.finish(seen, gathered.total, self._fleet.population), self.state, seen)
        if all(np.isfinite(array).all() for array in state.values() if array.dtype.kind == "f"):
            self.state = state
        else:
            self._session.log(f"round {number}: the sum of the updates is not finite; the model stays as it was")


def restored(state: Part, before: Part, seen: Part) -> Part:
    """Give back what the way down lost: steps smaller than its rounding would never add up otherwise."""
    for name, array in seen.items():
        if array is not before[name] and array.dtype.kind == "f":
            state[name] = state[name] + (before[name] - array)
    return state


def _told(gathered: Gathered, chosen: Sequence[int]) -> dict[str, Any]:
    losses = np.array([r.loss for r in gathered.replies])
    samples = np.array([r.samples for r in gathered.replies])
    return {
        "cohort": list(chosen),
        "missing": {str(client): why for client, why in gathered.missing.items()},
        **gathered.figures,
        "train_loss": float(losses @ samples / samples.sum()) if len(samples) else float("nan"),
    }
