"""The training loop of one rank, from a checkpoint to the last step; independent of how the ranks were started."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, Protocol

import torch

from ...core.control import Control
from ...core.errors import RunFailedError
from ...core.message import Array, Scalar
from ...models.devices import forked_generators
from ...models.torch_internals import rank_is_thread
from ..collective.protocol import End
from .config import TrainingConfig
from .protocol import TOTAL, BestState, Figures, Trained
from .training import Training
from .training_state import broadcast_state, load_training, training_arrays


class RankGroup(Protocol):
    """A group of ranks; implemented by :class:`~farshore.engines.collective.elastic_groups.ElasticGroup`."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    @property
    def step(self) -> int:
        """Step to start at."""

    @property
    def has_checkpoint(self) -> bool:
        """Whether this rank holds a checkpoint of that step."""

    @property
    def source(self) -> int:
        """A rank that holds it, if others lack it; else -1."""

    def load_checkpoint(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """Load this rank's checkpoint."""

    def set_step(self, step: int) -> None:
        """Account the following collectives and messages to a step."""

    def send(self, control: Control, tensors: Mapping[str, torch.Tensor] | None = None) -> None:
        """Send a message of this engine."""

    def checkpoint(self, step: int, tensors: Mapping[str, Array], meta: Mapping[str, Any]) -> None:
        """Save a checkpoint; may raise because a new group forms."""

    def finish(self, tensors: Mapping[str, torch.Tensor], end: End) -> None:
        """Report the end of training, with the trained model on one rank."""


def train(training: Training, group: RankGroup) -> None:
    """Run all steps from ``group.step`` on; rank 0 reports metrics, evaluates and returns the model."""
    # Ranks that share the generators with others leave them as they were after each batch.
    with nullcontext() if rank_is_thread() else forked_generators(training.device):
        _train(training, group)


def _train(training: Training, group: RankGroup) -> None:
    _load(training, group)
    config, done, metrics = training.config, group.step, None
    for step in range(group.step, training.total_steps):
        group.set_step(step)
        losses = training.step(step)
        done = step + 1
        figures = _mean_figures(training, losses, done) if logs(config, done, training.total_steps) else None
        metrics = _evaluate(training, group, done) if evaluates(config, done, training.total_steps) else None
        if group.rank == 0:
            _report(training, group, done, figures, metrics)
        if training.tracker is not None and training.tracker.stops:
            break
        if done % config.checkpoint_every == 0 and done < training.total_steps:
            group.checkpoint(done, training_arrays(training), {})
    group.set_step(done)
    if group.rank != 0:
        group.finish({}, Trained())
        return
    _finish(training, group, done, metrics or training.evaluate())


def logs(config: TrainingConfig, done: int, total: int) -> bool:
    """Return whether figures are reported after ``done`` steps."""
    return done % config.log_every == 0 or done == total


def evaluates(config: TrainingConfig, done: int, total: int) -> bool:
    """Return whether there is an evaluation after ``done`` steps, apart from the one at the end."""
    return config.eval_every > 0 and done % config.eval_every == 0 and done < total


def _load(training: Training, group: RankGroup) -> None:
    arrays: Mapping[str, Array] = {}
    if group.has_checkpoint:
        arrays, _ = group.load_checkpoint()
    load_training(training, arrays, group.step)
    if group.source >= 0:
        broadcast_state(training, group.source)
    training.wrap_ddp()


def _mean_figures(training: Training, losses: torch.Tensor, done: int) -> dict[str, float]:
    """Return the means of the losses over all ranks.

    Raises
    ------
    RunFailedError
        The loss is not finite, on all ranks. With fp16 it may recover: the optimizer ignores such steps.
    """
    figures = training.mean_over_ranks(losses)
    if not math.isfinite(figures["loss"]) and training.config.precision != "fp16":
        raise RunFailedError(
            f"the loss is {figures['loss']} after step {done}", hint="lower the learning rate, or set clip or warmup"
        )
    return figures


def _evaluate(training: Training, group: RankGroup, done: int) -> dict[str, float]:
    """Evaluate on rank 0; afterwards all ranks know the best score."""
    metrics: dict[str, float] = {}
    if group.rank == 0:
        metrics = training.evaluate()
        training.score(metrics, done)
    training.share_score()
    return metrics


def _report(
    training: Training,
    group: RankGroup,
    done: int,
    figures: Mapping[str, float] | None,
    metrics: Mapping[str, float] | None,
) -> None:
    if figures is not None:
        group.set_step(done)
        group.send(Figures(step_figures(training, done, figures)))
    if metrics is not None:
        group.set_step(done)
        group.send(Figures(metrics))
        tracker = training.tracker
        if training.config.keep_best and tracker is not None and tracker.best_step == done:
            group.send(BestState(tracker.best), training.result())


def step_figures(training: Training, done: int, figures: Mapping[str, float]) -> dict[str, Scalar]:
    """Return all figures that are reported after ``done`` steps."""
    values: dict[str, Scalar] = {"loss": figures["loss"], "lr": training.lr(done - 1), TOTAL: training.total_steps}
    values.update(figures)
    if training.preconditioner is not None:
        values.update(training.preconditioner.metrics())
    return values


def _finish(training: Training, group: RankGroup, done: int, metrics: Mapping[str, float]) -> None:
    best_score, tracker = None, training.tracker
    # After early stopping the last evaluation has been counted already, and was not the best.
    if tracker is not None and not tracker.stops and training.score(metrics, done) and training.config.keep_best:
        best_score = tracker.best
    group.finish(training.result(), Trained.with_result(metrics, done, training.parameters, best_score))
