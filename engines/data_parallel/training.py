"""The training loop of one rank: the same on nodes, under torchrun and on Ray."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from ...core.message import Array
from ...core.seeds import Seed
from ...data.image_set import ImageTask
from ...models.catalog import build
from ...models.state_arrays import from_arrays, to_arrays
from .batches import Batches, accuracy
from .config import DataParallel


class Preconditioner(Protocol):
    """What changes gradients between the backward pass and the optimizer's step."""

    def attach_ddp(self, ddp: DistributedDataParallel) -> None:
        """The model is wrapped."""

    def saw(self, logits: Tensor) -> None:
        """The forward pass is done, the backward pass comes."""

    def step(self) -> None:
        """Change the gradients."""

    def figures(self) -> Mapping[str, float]:
        """What there is to tell of the last step."""

    def arrays(self) -> dict[str, Array]:
        """This rank's state."""

    def load(self, arrays: Mapping[str, Array], step: int) -> None:
        """Take up :meth:`arrays`, or with none begin anew at a step."""

    def kind_of(self, step: int) -> Hashable:
        """What a step has in common with all that send as much."""

    def pretend(self, step: int) -> None:
        """The next step is this one; only what it sends counts, not what comes of it."""


#: Makes a preconditioner for a model and its optimizer.
Make = Callable[[nn.Module, torch.optim.Optimizer], Preconditioner]


class Training:
    """One rank's model, optimizer and batches.

    The default process group exists when it is made; with one process alone it needs none.

    Parameters
    ----------
    config : DataParallel
    task : ImageTask
    seed : Seed
    rank, ranks : int
    make : callable, optional
        The preconditioner.
    """

    def __init__(
        self, config: DataParallel, task: ImageTask, seed: Seed, rank: int, ranks: int, make: Make | None = None
    ) -> None:
        self.config, self.task, self.rank, self.ranks = config, task, rank, ranks
        channels, size = task.train.images.shape[1:3]
        self.model = build(config.model, len(task.classes), channels, size, seed.child("weights").value % (1 << 63))
        self.batches = Batches(task.train, config.batch, seed.child("batches"), config.train_samples, config.augment)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
        self.total = config.steps or config.epochs * self.batches.per_epoch(ranks)
        self.preconditioner = make(self.model, self.optimizer) if make else None
        self.wrapped: nn.Module = self.model

    @property
    def parameters(self) -> int:
        """Numbers that are trained."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    def wrap(self) -> None:
        """Let DDP average the gradients; the model's state is as it shall be by now."""
        if self.ranks == 1:
            return
        # Rank 0's weights go to all: whoever has come without a checkpoint has them then.
        ddp = DistributedDataParallel(self.model)
        self.wrapped = ddp
        if self.preconditioner is not None:
            self.preconditioner.attach_ddp(ddp)
        elif self.config.compression != "none":
            _compress(ddp, self.config)

    def share(self, source: int) -> None:
        """Give every rank the model and the optimizer's memory of one of them."""
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                memory = self.optimizer.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
                dist.broadcast(memory, source)
        for tensor in self.model.state_dict().values():
            dist.broadcast(tensor, source)

    def step(self, number: int) -> float:
        """One step; returns this rank's loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr(number)
        x, y = self.batches.at(number, self.rank, self.ranks)
        self.optimizer.zero_grad()
        logits = self.wrapped(x)
        if self.preconditioner is not None:
            self.preconditioner.saw(logits)
        loss = functional.cross_entropy(logits, y)
        loss.backward()  # type: ignore[no-untyped-call]
        if self.preconditioner is not None:
            self.preconditioner.step()
        self.optimizer.step()
        return float(loss.detach())

    def lr(self, number: int) -> float:
        """Learning rate of a step."""
        rise = min(1.0, (number + 1) / self.config.warmup) if self.config.warmup else 1.0
        if self.config.schedule == "constant":
            return self.config.lr * rise
        return self.config.lr * rise * 0.5 * (1 + math.cos(math.pi * min(1.0, number / self.total)))

    def mean(self, value: float) -> float:
        """A figure's mean over all ranks; each must call it."""
        if self.ranks == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.float64)
        dist.all_reduce(tensor)
        return float(tensor) / self.ranks

    def test(self) -> dict[str, float]:
        """Loss and accuracy on the test set."""
        loss, right = accuracy(self.model, self.task.test, self.batches)
        return {"test_loss": loss, "accuracy": right}

    def arrays(self) -> dict[str, Array]:
        """All that a checkpoint needs."""
        arrays = to_arrays(self.model, self.optimizer)
        if self.preconditioner is not None:
            arrays.update(self.preconditioner.arrays())
        return arrays

    def load(self, arrays: Mapping[str, Array], step: int) -> None:
        """Take up a checkpoint of a step; with none, the preconditioner begins anew there."""
        if arrays:
            from_arrays(arrays, self.model, self.optimizer)
        if self.preconditioner is not None:
            self.preconditioner.load(arrays, step)

    def result(self) -> dict[str, Tensor]:
        """The trained model."""
        return dict(self.model.state_dict())


def _compress(ddp: DistributedDataParallel, config: DataParallel) -> None:
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook

    if config.compression == "fp16":
        ddp.register_comm_hook(None, default_hooks.fp16_compress_hook)
        return
    state: Any = powerSGD_hook.PowerSGDState(
        None, matrix_approximation_rank=config.powersgd_rank, start_powerSGD_iter=config.powersgd_start
    )
    ddp.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
