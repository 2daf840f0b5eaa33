"""Records a federated run's rounds: history entries, metrics, per-client scores and model files."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.errors import ConfigError
from ...core.session import ServerSession
from ...models.flat_params import FlatModel
from ...runs import jsonl
from .client_pool import Reply
from .config import FederatedConfig
from .model_checkpoints import ModelCheckpoints
from .task import Task
from .task_hooks import ReportingTask
from .tree import NamedArrays

#: Byte counts of the history: the same in a resumed run. Frame bytes are not, so they are metrics only.
_REPRODUCIBLE = ("dense_up", "dense_down", "payload_up", "payload_down")
#: File with every client's score by round.
_CLIENT_SCORES = "clients.jsonl"


class RoundRecorder:
    """Completes history entries and writes metrics, client scores and model files.

    Parameters
    ----------
    session : ServerSession
    task : Task
    flat : FlatModel
        Overwritten by evaluations.
    schedule : FederatedConfig

    Raises
    ------
    ConfigError
        ``client_eval_every`` is set, and the task cannot score the model per client.
    """

    def __init__(self, session: ServerSession, task: Task, flat: FlatModel, schedule: FederatedConfig) -> None:
        self._session, self._task, self._flat, self._schedule = session, task, flat, schedule
        self._reporting = task if isinstance(task, ReportingTask) else None
        if schedule.client_eval_every and self._reporting is None:
            raise ConfigError(
                "the task cannot evaluate the model on each client's own test data", hint="set client_eval_every=0"
            )
        if self._reporting is not None:
            self._reporting.describe(session.run.directory)
        self._states = ModelCheckpoints(session.run.directory / "states", flat.layout)
        # Rounds after the checkpoint run again, and write their scores then.
        resumed_from = session.resume_step or 0
        jsonl.filter_file(session.run.directory / _CLIENT_SCORES, lambda line: line.get("round", 0) <= resumed_from)
        self._traffic = dict(session.traffic())
        self._frames: dict[str, int] = {}

    def average_replies(self, replies: Sequence[Reply]) -> dict[str, float]:
        """Average the loss and further metrics of a round's clients, weighted by their samples."""
        means = {"train_loss": _weighted_mean([r.loss for r in replies], replies)}
        for name in self._reporting.reports if self._reporting else ():
            # Clients may send anything: a client without a finite value does not affect the others' mean.
            if finite := [r for r in replies if math.isfinite(r.metrics.get(name, math.nan))]:
                means[name] = _weighted_mean([r.metrics[name] for r in finite], finite)
        return means

    def complete_entry(self, entry: dict[str, Any], state: NamedArrays) -> float:
        """Add the task's metrics, scores and byte counts to a round's entry; return the seconds of evaluation."""
        round_index, start = entry["round"], time.monotonic()
        if self._reporting is not None:
            entry |= self._reporting.metrics(entry)
        if self._due(round_index, self._schedule.eval_every):
            entry |= self._task.evaluate(self._flat, state)
            self._states.update_best(round_index, entry, state)
        if self._due(round_index, self._schedule.client_eval_every):
            entry |= self._score_clients(round_index, state)
        seconds = time.monotonic() - start
        entry |= self._bytes_since_last_round()
        return seconds

    def write_metrics(self, entry: Mapping[str, Any], seconds: Mapping[str, float]) -> dict[str, float]:
        """Write the metrics of a round; return its finite metrics."""
        metrics = {
            "loss" if name == "train_loss" else name: value
            for name, value in entry.items()
            if isinstance(value, float) and math.isfinite(value)
        }
        byte_counts = {f"{name}_bytes": float(entry[name]) for name in _REPRODUCIBLE if name in entry}
        byte_counts |= {f"{name}_bytes": float(count) for name, count in self._frames.items()}
        timings = {f"seconds_{name}": value for name, value in seconds.items()}
        self._session.metrics(entry["round"], **metrics, **byte_counts, **timings)
        return metrics

    def checkpoint_due(self, round_index: int) -> bool:
        """Return whether to save a checkpoint after round ``round_index``."""
        return self._due(round_index, self._schedule.checkpoint_every)

    def write_states(self, entry: Mapping[str, Any], state: NamedArrays) -> None:
        """Write the model files.

        Called before the checkpoint of the same round, so that the best state of a checkpoint's history exists.
        """
        self._states.write(entry["round"], entry, state)

    def _due(self, round_index: int, every: int) -> bool:
        return bool(every) and (round_index == self._schedule.rounds or round_index % every == 0)

    def _bytes_since_last_round(self) -> dict[str, int]:
        now = dict(self._session.traffic())
        since = {name: count - self._traffic.get(name, 0) for name, count in now.items()}
        self._traffic = now
        self._frames = {name: count for name, count in since.items() if name not in _REPRODUCIBLE}
        return {name: count for name, count in since.items() if name in _REPRODUCIBLE}

    def _score_clients(self, round_index: int, state: NamedArrays) -> dict[str, float]:
        assert self._reporting is not None
        scores = self._reporting.client_accuracy(self._flat, state)
        folder = self._session.run.directory
        folder.mkdir(parents=True, exist_ok=True)
        lines = jsonl.JsonLines(folder / _CLIENT_SCORES)
        try:
            lines.append({"round": round_index, "acc": scores.tolist()})
        finally:
            lines.close()
        return client_score_stats(scores)


def client_score_stats(scores: NDArray[np.float64]) -> dict[str, float]:
    """Mean, standard deviation, minimum and 10th percentile of the clients' scores, without NaN ones."""
    found = scores[~np.isnan(scores)]
    if not len(found):
        return {}
    return {
        "client_acc_mean": float(found.mean()),
        "client_acc_std": float(found.std()),
        "client_acc_worst": float(found.min()),
        "client_acc_p10": float(np.percentile(found, 10)),
    }


def _weighted_mean(values: Sequence[float], replies: Sequence[Reply]) -> float:
    samples = np.array([r.samples for r in replies], np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.array(values) @ samples / samples.sum()) if len(samples) else float("nan")
