"""The steps of one rank from a checkpoint to the end, wherever its process group comes from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch

from ...core.message import Array, Scalar
from .config import DataParallel
from .training import Training


class RankGroup(Protocol):
    """The ranks as they are now; see :class:`farshore.engines.collective.elastic_groups.RankGroup`."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    @property
    def step(self) -> int:
        """Where to begin."""

    @property
    def held(self) -> bool:
        """Whether this rank has a checkpoint of that step."""

    @property
    def source(self) -> int:
        """A rank that has it, where some have not; else -1."""

    def load(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """This rank's checkpoint."""

    def at(self, step: int) -> None:
        """What follows belongs to a step."""

    def tell(self, what: str, **fields: Scalar) -> None:
        """Figures."""

    def boundary(self, step: int, tensors: Mapping[str, Array], meta: Mapping[str, Any]) -> None:
        """Save a checkpoint; the ranks may change."""

    def end(self, tensors: Mapping[str, torch.Tensor], **fields: Scalar) -> None:
        """The work is done."""


def train(training: Training, world: RankGroup, config: DataParallel) -> None:
    """All steps from the world's on; rank 0 tells, tests and gives the result."""
    _begin(training, world)
    for step in range(world.step, training.total):
        world.at(step)
        loss = training.step(step)
        done = step + 1
        if done % config.log_every == 0 or done == training.total:
            _tell(training, world, done, loss)
        if config.eval_every and done % config.eval_every == 0 and done < training.total and world.rank == 0:
            world.tell("figures", **training.test())
        if done % config.checkpoint_every == 0 and done < training.total:
            world.boundary(done, training.arrays(), {})
    world.at(training.total)
    if world.rank == 0:
        world.end(training.result(), **training.test(), steps=training.total, parameters=training.parameters)
    else:
        world.end({})


def _begin(training: Training, world: RankGroup) -> None:
    arrays: Mapping[str, Array] = {}
    if world.held:
        arrays, _ = world.load()
    training.load(arrays, world.step)
    if world.source >= 0:
        training.share(world.source)
    training.wrap()


def _tell(training: Training, world: RankGroup, done: int, loss: float) -> None:
    loss = training.mean(loss)
    if world.rank == 0:
        extra = training.preconditioner.figures() if training.preconditioner else {}
        world.at(done)
        world.tell("figures", loss=loss, lr=training.lr(done - 1), total=training.total, **extra)
