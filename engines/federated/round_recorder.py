"""What a federated run tells of every round, and what it leaves behind in its directory."""

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
from .task_hooks import Observed
from .tree import Part

#: Bytes that are the same for the same rounds, however often the run was resumed; frames are not.
_LASTING = ("dense_up", "dense_down", "payload_up", "payload_down")
#: Each client's own score, by round.
_SCORES = "clients.jsonl"


class RoundRecorder:
    """Entries of the history, lines of the metrics, states by name.

    Parameters
    ----------
    session : ServerSession
    task : Task
    flat : FlatModel
        Overwritten by scores.
    schedule : FederatedConfig

    Raises
    ------
    ConfigError
        Clients are to be scored one by one, and the task cannot.
    """

    def __init__(self, session: ServerSession, task: Task, flat: FlatModel, schedule: FederatedConfig) -> None:
        self._session, self._task, self._flat, self._schedule = session, task, flat, schedule
        self._observed = task if isinstance(task, Observed) else None
        if schedule.client_eval_every and self._observed is None:
            raise ConfigError(
                "the task cannot score the model on each client's own test data", hint="set client_eval_every=0"
            )
        if self._observed is not None:
            self._observed.describe(session.run.directory)
        self._states = ModelCheckpoints(session.run.directory / "states", flat.layout)
        # Rounds behind the checkpoint are played again, and their scores are told then.
        begun = session.resume_step or 0
        jsonl.keep(session.run.directory / _SCORES, lambda line: line.get("round", 0) <= begun)
        self._traffic = dict(session.traffic())
        self._frames: dict[str, int] = {}

    def replies(self, replies: Sequence[Reply]) -> dict[str, float]:
        """Loss and further figures of a round's clients, each weighted by its samples."""
        told = {"train_loss": _weighted([r.loss for r in replies], replies)}
        for name in self._observed.reports if self._observed else ():
            # Clients say what they like: whoever tells no number takes nothing from what the others tell.
            if there := [r for r in replies if math.isfinite(r.figures.get(name, math.nan))]:
                told[name] = _weighted([r.figures[name] for r in there], there)
        return told

    def complete(self, entry: dict[str, Any], state: Part) -> float:
        """Add scores, bytes and what the task tells to a round's entry; returns the seconds of testing."""
        round_index, began = entry["round"], time.monotonic()
        if self._observed is not None:
            entry |= self._observed.figures(entry)
        if self._due(round_index, self._schedule.eval_every):
            entry |= self._task.evaluate(self._flat, state)
            self._states.saw(round_index, entry, state)
        if self._due(round_index, self._schedule.client_eval_every):
            entry |= self._score_clients(round_index, state)
        seconds = time.monotonic() - began
        entry |= self._bytes()
        return seconds

    def tell(self, entry: Mapping[str, Any], seconds: Mapping[str, float]) -> dict[str, float]:
        """Write the metrics of a round; returns its finite figures."""
        figures = {
            "loss" if name == "train_loss" else name: value
            for name, value in entry.items()
            if isinstance(value, float) and math.isfinite(value)
        }
        counted = {f"{name}_bytes": float(entry[name]) for name in _LASTING if name in entry}
        counted |= {f"{name}_bytes": float(count) for name, count in self._frames.items()}
        timed = {f"seconds_{name}": value for name, value in seconds.items()}
        self._session.metrics(entry["round"], **figures, **counted, **timed)
        return figures

    def checkpoint_due(self, round_index: int) -> bool:
        """Whether the state after round ``round_index`` is to be saved."""
        return self._due(round_index, self._schedule.checkpoint_every)

    def keep(self, entry: Mapping[str, Any], state: Part) -> None:
        """Write the states' files, before the checkpoint of the same round.

        So the best of what a checkpoint's history tells is never missing.
        """
        self._states.write(entry["round"], entry, state)

    def _due(self, round_index: int, every: int) -> bool:
        return bool(every) and (round_index == self._schedule.rounds or round_index % every == 0)

    def _bytes(self) -> dict[str, int]:
        """Bytes since the last round's end."""
        now = dict(self._session.traffic())
        since = {name: count - self._traffic.get(name, 0) for name, count in now.items()}
        self._traffic = now
        self._frames = {name: count for name, count in since.items() if name not in _LASTING}
        return {name: count for name, count in since.items() if name in _LASTING}

    def _score_clients(self, round_index: int, state: Part) -> dict[str, float]:
        assert self._observed is not None
        scores = self._observed.by_client(self._flat, state)
        folder = self._session.run.directory
        folder.mkdir(parents=True, exist_ok=True)
        lines = jsonl.JsonLines(folder / _SCORES)
        try:
            lines.append({"round": round_index, "acc": scores.tolist()})
        finally:
            lines.close()
        return spread_of(scores)


def spread_of(scores: NDArray[np.float64]) -> dict[str, float]:
    """Mean, standard deviation, lowest and lowest decile of the clients' scores; NaN ones have none."""
    found = scores[~np.isnan(scores)]
    if not len(found):
        return {}
    return {
        "client_acc_mean": float(found.mean()),
        "client_acc_std": float(found.std()),
        "client_acc_worst": float(found.min()),
        "client_acc_p10": float(np.percentile(found, 10)),
    }


def _weighted(values: Sequence[float], replies: Sequence[Reply]) -> float:
    samples = np.array([r.samples for r in replies], np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.array(values) @ samples / samples.sum()) if len(samples) else float("nan")
