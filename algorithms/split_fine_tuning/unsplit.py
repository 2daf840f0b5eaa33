"""The same training without a split: what every accuracy of the method is held against.

The same examples in the same steps, the same dropout rates, schedule and optimizer; the whole model in one process.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from ...core.errors import DataError
from ...core.seeds import Seed
from ...data.batches import Batch, evaluation_batches
from ...data.encoded import EncodedSet
from ...models.state_arrays import from_arrays, to_arrays
from ...runs.checkpoints import CheckpointStore
from .builders import Builder, TaskData, inputs_of
from .config import SplitFineTuning
from .dropout import DropoutSeeds
from .handshake import SPARE, Schedule, shares
from .optimizer import make_optimizer, make_schedule

OnProgress = Callable[[int, int, dict[str, float]], None]


def train_unsplit(
    config: SplitFineTuning,
    seed: int,
    edges: int = 1,
    data: Callable[[str], Path] | None = None,
    on_progress: OnProgress | None = None,
    checkpoints: CheckpointStore | None = None,
) -> dict[str, Any]:
    """Train the unsplit model on what ``edges`` edges would have trained on together.

    Parameters
    ----------
    config : SplitFineTuning
        Of the split run; what concerns cut and wire is ignored.
    seed : int
        The split run's.
    edges : int
        How many edges shared each step.
    data : callable, optional
        Gives the path of a data set by name.
    on_progress : callable, optional
        Called as ``on_progress(step, total, {"loss": …})`` after each step.
    checkpoints : CheckpointStore, optional
        Where to go on from, and to save to every ``checkpoint_every`` steps.

    Returns
    -------
    dict
        ``metric``, ``score``, ``score_spare`` (None without spare examples), ``steps``, ``loss`` (mean of the
        last 50 steps) and ``evaluations``.
    """
    whole = Whole(config, Builder(config, Seed(seed), data or no_data), edges)
    first = whole.restore(checkpoints) if checkpoints else 0
    for step in range(first, whole.schedule.total):
        whole.step(step)
        if checkpoints and whole.schedule.saves(step + 1):
            whole.save(checkpoints, step + 1)
        if on_progress:
            on_progress(step + 1, whole.schedule.total, whole.progress())
    return whole.result()


class Whole:
    """The unsplit model in training, on the batches of ``edges`` edges."""

    def __init__(self, config: SplitFineTuning, builder: Builder, edges: int) -> None:
        torch.set_num_threads(config.threads or torch.get_num_threads())
        self.config = config
        self.model, tokenizer = builder.whole()
        self.task = builder.task(tokenizer)
        parts = shares(config.batch_size, edges)
        self.shards = [self.task.shard(place, edges) for place in range(edges)]
        steps = max(shard.natural_steps(part) for shard, part in zip(self.shards, parts, strict=True))
        self.schedule = Schedule(steps, config)
        self.plans = [shard.plan(part, steps) for shard, part in zip(self.shards, parts, strict=True)]
        self.optimizer, self.scheduler = make_optimizer(self.model, config, self.schedule.total)
        self.dropout = DropoutSeeds(self.model, builder.seed.child("dropout", "whole"))
        self.losses: list[float] = []
        self.evaluations: list[dict[str, float]] = []

    def step(self, step: int) -> None:
        """One optimizer step, and the evaluation that is due after it."""
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        batches = [shard.batch(plan, step) for shard, plan in zip(self.shards, self.plans, strict=True)]
        self.losses.append(_step(self.model, batches, self.dropout, step))
        self.optimizer.step()
        self.scheduler.step()
        if self.schedule.evaluates(step + 1):
            task = self.task
            self.evaluations.append({"step": step + 1, task.metric: evaluate(self.model, task, task.dev)})
            if self.schedule.scores_spare(step + 1) and task.spare is not None:
                self.evaluations[-1][SPARE] = evaluate(self.model, task, task.spare)

    def restore(self, checkpoints: CheckpointStore) -> int:
        """Go on from the newest checkpoint; returns the steps that are done."""
        first = max(checkpoints.steps(), default=0)
        if first:
            arrays, meta = checkpoints.load(first)
            from_arrays(arrays, self.model, self.optimizer)
            self.losses, self.evaluations = list(meta["losses"]), list(meta["evaluations"])
            self.scheduler = make_schedule(self.optimizer, self.config, self.schedule.total, first)
        return first

    def save(self, checkpoints: CheckpointStore, done: int) -> None:
        """Write a checkpoint."""
        meta = {"losses": self.losses, "evaluations": self.evaluations}
        checkpoints.save(done, to_arrays(self.model, self.optimizer), meta)

    def progress(self) -> dict[str, float]:
        """What a progress line shows."""
        newest = {self.task.metric: self.evaluations[-1][self.task.metric]} if self.evaluations else {}
        return {"loss": float(np.mean(self.losses[-20:])), **newest}

    def result(self) -> dict[str, Any]:
        """As :func:`train_unsplit` returns it."""
        return {
            "metric": self.task.metric,
            "score": self.evaluations[-1][self.task.metric],
            "score_spare": self.evaluations[-1].get(SPARE),
            "steps": self.schedule.total,
            "loss": float(np.mean(self.losses[-50:])),
            "evaluations": self.evaluations,
        }


def _step(model: torch.nn.Module, batches: list[Batch], dropout: DropoutSeeds, step: int) -> float:
    """Gradients of one step: the mean loss over the examples of all batches."""
    total = sum(map(len, batches))
    value = 0.0
    for place, batch in enumerate(batches):
        dropout.at(step, place)
        loss = functional.cross_entropy(_logits(model, batch), torch.from_numpy(batch.labels), reduction="sum") / total
        loss.backward()  # type: ignore[no-untyped-call]
        value += float(loss.detach())
    return value


def _logits(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    logits: torch.Tensor = model(**inputs_of(batch))
    return logits


@torch.no_grad()
def evaluate(model: torch.nn.Module, task: TaskData, examples: EncodedSet) -> float:
    """The task's score of a whole model on ``examples``."""
    model.eval()
    batches = list(evaluation_batches(examples, 64))
    guess = [_logits(model, batch).argmax(-1).numpy() for batch in batches]
    return task.score(np.concatenate([b.labels for b in batches]), np.concatenate(guess))


def no_data(name: str) -> Path:
    """A machine without data sets of its own."""
    raise DataError(f"there is no data set called '{name}' here", hint=f"give one: --data {name}=PATH")
