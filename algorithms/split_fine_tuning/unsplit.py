"""Training of the unsplit model, the baseline for accuracy.

Uses the same examples in the same steps, and the same dropout rates, optimizer and schedule, in one process.
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
from ...engines.split.placement import Placement
from ...engines.split.seeded_dropout import OwnGeneratorDropout
from ...models.state_arrays import from_arrays, to_arrays
from ...runs.checkpoints import CheckpointStore
from .builders import EVALUATION_BATCH_SIZE, Builder, inputs_of
from .config import SplitFineTuning
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
    """Train the unsplit model on the batches of a run with ``edges`` edges.

    Parameters
    ----------
    config : SplitFineTuning
        Settings of the split run; those of cut and wire are ignored.
    seed : int
        Seed of the split run.
    edges : int
        Number of edges that share each step.
    data : callable, optional
        Maps the name of a data set to its path.
    on_progress : callable, optional
        Called as ``on_progress(step, total, {"loss": …})`` after each step.
    checkpoints : CheckpointStore, optional
        Store to resume from, and to save to every ``checkpoint_every`` steps.

    Returns
    -------
    dict
        ``metric``, ``score``, ``score_spare`` (None without spare examples), ``steps``, ``loss`` (mean of the
        last 50 steps) and ``evaluations``.
    """
    training = UnsplitTraining(config, Builder(config, Seed(seed), data or no_data), edges)
    first = training.restore(checkpoints) if checkpoints else 0
    for step in range(first, training.schedule.total):
        training.step(step)
        if checkpoints and training.schedule.saves(step + 1):
            training.save(checkpoints, step + 1)
        if on_progress:
            on_progress(step + 1, training.schedule.total, training.progress())
    return training.result()


class UnsplitTraining:
    """Model, optimizer and batches of an unsplit training."""

    def __init__(self, config: SplitFineTuning, builder: Builder, edges: int) -> None:
        torch.set_num_threads(config.threads or torch.get_num_threads())
        self.config = config
        self.placement = Placement(config)
        model, tokenizer = builder.unsplit()
        self.model = self.placement.place(model)
        self.task = builder.task(tokenizer)
        batch_sizes = shares(config.batch_size, edges)
        self.shards = [self.task.shard(index, edges) for index in range(edges)]
        steps = max(shard.natural_steps(size) for shard, size in zip(self.shards, batch_sizes, strict=True))
        self.schedule = Schedule(steps, config)
        self.plans = [shard.plan(size, steps) for shard, size in zip(self.shards, batch_sizes, strict=True)]
        self.optimizer, self.scheduler = make_optimizer(self.model, config, self.schedule.total)
        seed = builder.seed.child("dropout", "whole")
        self.dropout = OwnGeneratorDropout(self.model, seed, self.placement.device)
        self.losses: list[float] = []
        self.evaluations: list[dict[str, float]] = []

    def step(self, step: int) -> None:
        """Take one optimizer step; evaluate if due after it."""
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        batches = [shard.batch(plan, step) for shard, plan in zip(self.shards, self.plans, strict=True)]
        self.losses.append(_step(self.model, batches, self.dropout, step, self.placement))
        self.optimizer.step()
        self.scheduler.step()
        if self.schedule.evaluates(step + 1):
            task = self.task
            self.evaluations.append({"step": step + 1, task.metric: self._evaluate(task.dev)})
            if self.schedule.scores_spare(step + 1) and task.spare is not None:
                self.evaluations[-1][SPARE] = self._evaluate(task.spare)

    @torch.no_grad()
    def _evaluate(self, examples: EncodedSet) -> float:
        """Compute the task's metric on ``examples``."""
        self.model.eval()
        batches = list(evaluation_batches(examples, EVALUATION_BATCH_SIZE))
        predictions = [_logits(self.model, batch, self.placement).argmax(-1).cpu().numpy() for batch in batches]
        return self.task.score(np.concatenate([b.labels for b in batches]), np.concatenate(predictions))

    def restore(self, checkpoints: CheckpointStore) -> int:
        """Load the newest checkpoint; return its number of steps, 0 without one."""
        first = max(checkpoints.steps(), default=0)
        if first:
            arrays, meta = checkpoints.load(first)
            from_arrays(arrays, self.model, self.optimizer)
            self.losses, self.evaluations = list(meta["losses"]), list(meta["evaluations"])
            self.scheduler = make_schedule(self.optimizer, self.config, self.schedule.total, first)
        return first

    def save(self, checkpoints: CheckpointStore, done: int) -> None:
        """Save a checkpoint after ``done`` steps."""
        meta = {"losses": self.losses, "evaluations": self.evaluations}
        checkpoints.save(done, to_arrays(self.model, self.optimizer), meta)

    def progress(self) -> dict[str, float]:
        """Return the values of a progress line: mean of the last 20 losses, and the latest score."""
        latest = {self.task.metric: self.evaluations[-1][self.task.metric]} if self.evaluations else {}
        return {"loss": float(np.mean(self.losses[-20:])), **latest}

    def result(self) -> dict[str, Any]:
        """Return the result of :func:`train_unsplit`."""
        return {
            "metric": self.task.metric,
            "score": self.evaluations[-1][self.task.metric],
            "score_spare": self.evaluations[-1].get(SPARE),
            "steps": self.schedule.total,
            "loss": float(np.mean(self.losses[-50:])),
            "evaluations": self.evaluations,
        }


def _step(
    model: torch.nn.Module, batches: list[Batch], dropout: OwnGeneratorDropout, step: int, placement: Placement
) -> float:
    """Accumulate the gradients of one step; return the mean loss over the examples of all batches."""
    total = sum(map(len, batches))
    value = 0.0
    for index, batch in enumerate(batches):
        dropout.reseed(step, index)
        labels = torch.from_numpy(batch.labels).to(placement.device)
        loss = functional.cross_entropy(_logits(model, batch, placement).float(), labels, reduction="sum") / total
        loss.backward()  # type: ignore[no-untyped-call]
        value += float(loss.detach())
    return value


def _logits(model: torch.nn.Module, batch: Batch, placement: Placement) -> torch.Tensor:
    with placement.autocast():
        logits: torch.Tensor = model(**placement.tensors(inputs_of(batch)))
    return logits


def no_data(name: str) -> Path:
    """Data lookup without any data sets; always raises."""
    raise DataError(f"no data set is named '{name}'", hint=f"give its path: --data {name}=PATH")
