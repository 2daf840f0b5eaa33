"""Synchronous rounds on the server: draw a cohort, train it, aggregate the updates, evaluate the new state."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from ...core.errors import RunFailedError
from .client_pool import RoundResult
from .left_out import check_useful
from .server_run import ServerRun
from .task_hooks import refine_state
from .tree import NamedArrays
from .update_validation import is_finite


class Rounds(ServerRun):
    """A synchronous federated run on the server; see :class:`ServerRun`.

    Raises
    ------
    RunFailedError
        ``per_round`` exceeds the population.
    """

    def _prepare(self) -> None:
        if self._schedule.per_round > self._pool.population:
            raise RunFailedError(
                f"per_round is {self._schedule.per_round}, but there are only {self._pool.population} clients",
                hint="lower per_round, or let more nodes join",
            )

    def run(self) -> list[dict[str, Any]]:
        """Run all remaining rounds; return the history, one entry per round.

        Raises
        ------
        RunFailedError
            No round has changed the model; see :func:`.left_out.check_useful`.
        """
        with self._history as history:
            while self._next <= self._schedule.rounds:
                self._session.check_cancelled()
                self._round(self._next)
                check_useful(history.entries, self._pool.population, ended=False)
        check_useful(history.entries, self._pool.population, ended=True)
        return history.entries

    def _round(self, round_index: int) -> None:
        seed, start = self._session.run.seed, time.monotonic()
        cohort = self._pool.draw(seed, round_index, self._schedule.per_round)
        result = self._pool.round(round_index, cohort, self._method.sent(self.state), self._method)
        trained = time.monotonic()
        entry = self._entry(round_index, cohort, result)
        if why := self._step(round_index, result):
            self._session.log(f"round {round_index}: {why}; the model is unchanged")
            entry["unchanged"] = why
        timings = {"aggregate": 0.0, **result.seconds}
        timings["aggregate"] += time.monotonic() - trained
        metrics = self._record(entry, timings)
        clients = {"ok": len(result.replies), "late": len(result.late)}
        clients["failed"] = len(cohort) - sum(clients.values())
        seconds = time.monotonic() - start
        self._session.progress(round_index, self._schedule.rounds, unit="round", seconds=seconds, **clients, **metrics)

    def _entry(self, round_index: int, cohort: Sequence[int], result: RoundResult) -> dict[str, Any]:
        entry = {
            "round": round_index,
            "cohort": list(cohort),
            "missing": {str(client): why for client, why in result.missing.items()},
            **result.metrics,
            **self._recorder.average_replies(result.replies),
        }
        if result.total is not None:
            divergence = self._method.divergence({**self.state, **result.received}, result.total)
            entry |= {} if divergence is None else {"divergence": divergence}
        return entry

    def _step(self, round_index: int, result: RoundResult) -> str:
        """Set the next state from the sum; return why the current one stays, empty if it does not."""
        count, least = len(result.replies), self._schedule.least
        if result.total is None or count < least:
            return f"{count} of at least {least} replies"
        received = {**self.state, **result.received}
        state = self._method.finish(received, result.total, self._pool.population)
        state = restore_downlink_loss(state, self.state, received)
        state = refine_state(self._task, self._flat, state, round_index)
        if not all(is_finite(array) for array in state.values() if array.dtype.kind == "f"):
            return "the sum of the updates is not finite"
        self.state = state
        return ""


def restore_downlink_loss(state: NamedArrays, before: NamedArrays, received: NamedArrays) -> NamedArrays:
    """Add to ``state`` what the downlink encoding lost of ``before``.

    Otherwise steps smaller than the encoding's rounding would never accumulate.
    """
    for name, array in received.items():
        if array is not before[name] and array.dtype.kind == "f":
            state[name] = state[name] + (before[name] - array)
    return state
