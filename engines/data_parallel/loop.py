"""The training loop of one rank, from a checkpoint to the last step; independent of how the ranks were started."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch

from ...core.control import Control
from ...core.message import Array
from ..collective.protocol import End
from .config import DataParallelConfig
from .protocol import Figures, Trained
from .training import Training


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
        """Account the following collectives and metrics to a step."""

    def send(self, control: Control, tensors: Mapping[str, torch.Tensor] | None = None) -> None:
        """Send a message of this engine."""

    def checkpoint(self, step: int, tensors: Mapping[str, Array], meta: Mapping[str, Any]) -> None:
        """Save a checkpoint; may raise because a new group forms."""

    def finish(self, tensors: Mapping[str, torch.Tensor], end: End) -> None:
        """Report the end of training, with the trained model on one rank."""


def train(training: Training, group: RankGroup, config: DataParallelConfig) -> None:
    """Run all steps from ``group.step`` on; rank 0 reports metrics, evaluates and returns the model."""
    _load(training, group)
    for step in range(group.step, training.total_steps):
        group.set_step(step)
        loss = training.step(step)
        done = step + 1
        if done % config.log_every == 0 or done == training.total_steps:
            _report(training, group, done, loss)
        if config.eval_every and done % config.eval_every == 0 and done < training.total_steps and group.rank == 0:
            group.send(Figures(training.evaluate()))
        if done % config.checkpoint_every == 0 and done < training.total_steps:
            group.checkpoint(done, training.arrays(), {})
    group.set_step(training.total_steps)
    if group.rank == 0:
        values = {**training.evaluate(), "steps": training.total_steps, "parameters": training.parameters}
        group.finish(training.result(), Trained(values))
    else:
        group.finish({}, Trained())


def _load(training: Training, group: RankGroup) -> None:
    arrays: Mapping[str, Array] = {}
    if group.has_checkpoint:
        arrays, _ = group.load_checkpoint()
    training.load(arrays, group.step)
    if group.source >= 0:
        training.broadcast_state(group.source)
    training.wrap_ddp()


def _report(training: Training, group: RankGroup, done: int, loss: float) -> None:
    loss = training.mean_over_ranks(loss)
    if group.rank == 0:
        extra = training.preconditioner.metrics() if training.preconditioner else {}
        group.set_step(done)
        group.send(Figures({"loss": loss, "lr": training.lr(done - 1), "total": training.total_steps, **extra}))
