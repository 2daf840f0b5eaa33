"""The same training without a split: what every accuracy of the method is held against.

The same examples in the same steps, the same dropout rates, schedule and optimiser; the whole model in one process.
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
from ...runs.checkpoints import CheckpointStore
from ..training_state import from_arrays, to_arrays
from .agreement import SPARE, Schedule, shares
from .config import SplitFineTuning
from .dropout import DropoutSeeds
from .optimiser import make_optimiser, make_schedule
from .parts import Builder, TaskData, inputs_of

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
        ``metric``, ``accuracy``, ``accuracy_spare`` (None without spare examples), ``steps``, ``loss`` (mean of the
        last 50 steps) and ``evaluations``.
    """
    torch.set_num_threads(config.threads or torch.get_num_threads())
    builder = Builder(config, Seed(seed), data or no_data)
    model, tokenizer = builder.whole()
    task = builder.task(tokenizer)
    parts = shares(config.batch_size, edges)
    held = [task.shard(place, edges) for place in range(edges)]
    steps = max(shard.natural_steps(part) for shard, part in zip(held, parts, strict=True))
    schedule = Schedule(steps, config)
    plans = [shard.plan(part, steps) for shard, part in zip(held, parts, strict=True)]
    optimiser, scheduler = make_optimiser(model, config, schedule.total)
    dropout = DropoutSeeds(model, builder.seed.child("dropout", "whole"))
    losses: list[float] = []
    evaluations: list[dict[str, float]] = []
    first = max(checkpoints.steps(), default=0) if checkpoints else 0
    if checkpoints and first:
        arrays, meta = checkpoints.load(first)
        from_arrays(arrays, model, optimiser)
        losses, evaluations = list(meta["losses"]), list(meta["evaluations"])
        scheduler = make_schedule(optimiser, config, schedule.total, first)
    for step in range(first, schedule.total):
        model.train()
        optimiser.zero_grad(set_to_none=True)
        batches = [shard.batch(plan, step) for shard, plan in zip(held, plans, strict=True)]
        losses.append(_step(model, batches, dropout, step))
        optimiser.step()
        scheduler.step()
        if schedule.evaluates(step + 1):
            evaluations.append({"step": step + 1, task.metric: evaluate(model, task, task.dev)})
            if schedule.scores_spare(step + 1) and task.spare is not None:
                evaluations[-1][SPARE] = evaluate(model, task, task.spare)
        if checkpoints and schedule.saves(step + 1):
            checkpoints.save(step + 1, to_arrays(model, optimiser), {"losses": losses, "evaluations": evaluations})
        if on_progress:
            newest = {task.metric: evaluations[-1][task.metric]} if evaluations else {}
            on_progress(step + 1, schedule.total, {"loss": float(np.mean(losses[-20:])), **newest})
    return {
        "metric": task.metric,
        "accuracy": evaluations[-1][task.metric],
        "accuracy_spare": evaluations[-1].get(SPARE),
        "steps": schedule.total,
        "loss": float(np.mean(losses[-50:])),
        "evaluations": evaluations,
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
    raise DataError(f"there is no data set called '{name}' here", cure=f"give one: --data {name}=PATH")
