"""One rank's model, optimizer, batches and training step; the same on nodes, under torchrun and in Ray actors."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from functools import wraps
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
from ...models.devices import forked_generators
from ...models.state_arrays import from_arrays, to_arrays
from .batches import Batches, accuracy
from .config import DataParallelConfig


class Preconditioner(Protocol):
    """Changes the gradients between the backward pass and the optimizer's step."""

    def attach_ddp(self, ddp: DistributedDataParallel) -> None:
        """Use the DDP wrapper of the model for the gradient exchange."""

    def after_forward(self, logits: Tensor) -> None:
        """Called between the forward and the backward pass."""

    def step(self) -> None:
        """Change the gradients; called after the backward pass on all ranks."""

    def metrics(self) -> Mapping[str, float]:
        """Return metrics of the last step."""

    def arrays(self) -> dict[str, Array]:
        """Return this rank's state for a checkpoint."""

    def load(self, arrays: Mapping[str, Array], step: int) -> None:
        """Restore what :meth:`arrays` returned; without arrays, start with an empty state at ``step``."""

    def traffic_class(self, step: int) -> Hashable:
        """Return a key that is equal for steps that send the same messages."""

    def set_dry_step(self, step: int) -> None:
        """Make ``step`` the next step of a dry run, in which only the messages matter."""


#: Makes the preconditioner of a model and its optimizer.
PreconditionerFactory = Callable[[nn.Module, torch.optim.Optimizer], Preconditioner]


class Training:
    """One rank's model, optimizer and batches.

    With more than one rank the default process group must exist.

    Parameters
    ----------
    config : DataParallelConfig
    task : ImageTask
    seed : Seed
    rank, ranks : int
    factory : callable, optional
        Makes the preconditioner from the model and the optimizer.

    Attributes
    ----------
    total_steps : int
        Steps of the whole run.
    wrapped : Module
        The model, wrapped by DDP after :meth:`wrap_ddp`.
    """

    def __init__(
        self,
        config: DataParallelConfig,
        task: ImageTask,
        seed: Seed,
        rank: int,
        ranks: int,
        factory: PreconditionerFactory | None = None,
    ) -> None:
        self.config, self.task, self.rank, self.ranks = config, task, rank, ranks
        channels, size = task.train.images.shape[1:3]
        self.model = build(config.model, len(task.classes), channels, size, seed.child("weights").value % (1 << 63))
        self.batches = Batches(task.train, config.batch, seed.child("batches"), config.train_samples, config.augment)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
        self.total_steps = config.steps or config.epochs * self.batches.steps_per_epoch(ranks)
        self.preconditioner = factory(self.model, self.optimizer) if factory else None
        self.wrapped: nn.Module = self.model

    @property
    def parameters(self) -> int:
        """Number of trainable parameters."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    def wrap_ddp(self) -> None:
        """Wrap the model in DDP, once its state is loaded."""
        if self.ranks == 1:
            return
        # DDP broadcasts rank 0's weights and buffers when it is made.
        ddp = DistributedDataParallel(self.model)
        self.wrapped = ddp
        if self.preconditioner is not None:
            self.preconditioner.attach_ddp(ddp)
        elif self.config.compression != "none":
            _compress(ddp, self.config)

    def broadcast_state(self, source: int) -> None:
        """Broadcast the model and the momentum buffers of rank ``source``."""
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                momentum = self.optimizer.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
                dist.broadcast(momentum, source)
        for tensor in self.model.state_dict().values():
            dist.broadcast(tensor, source)

    def step(self, number: int) -> float:
        """Train one step and return this rank's loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr(number)
        x, y = self.batches.at(number, self.rank, self.ranks)
        self.optimizer.zero_grad()
        logits = self.wrapped(x)
        if self.preconditioner is not None:
            self.preconditioner.after_forward(logits)
        loss = functional.cross_entropy(logits, y)
        loss.backward()  # type: ignore[no-untyped-call]
        if self.preconditioner is not None:
            self.preconditioner.step()
        self.optimizer.step()
        return float(loss.detach())

    def lr(self, number: int) -> float:
        """Return the learning rate of a step."""
        warmup = min(1.0, (number + 1) / self.config.warmup) if self.config.warmup else 1.0
        if self.config.schedule == "constant":
            return self.config.lr * warmup
        return self.config.lr * warmup * 0.5 * (1 + math.cos(math.pi * min(1.0, number / self.total_steps)))

    def mean_over_ranks(self, value: float) -> float:
        """Return the mean of a number over all ranks; a collective."""
        if self.ranks == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.float64)
        dist.all_reduce(tensor)
        return float(tensor) / self.ranks

    def evaluate(self) -> dict[str, float]:
        """Return loss and accuracy on the test set."""
        loss, share_correct = accuracy(self.model, self.task.test, self.batches)
        return {"test_loss": loss, "accuracy": share_correct}

    def arrays(self) -> dict[str, Array]:
        """Return this rank's state for a checkpoint."""
        arrays = to_arrays(self.model, self.optimizer)
        if self.preconditioner is not None:
            arrays.update(self.preconditioner.arrays())
        return arrays

    def load(self, arrays: Mapping[str, Array], step: int) -> None:
        """Restore a checkpoint; without arrays only the preconditioner's step is set."""
        if arrays:
            from_arrays(arrays, self.model, self.optimizer)
        if self.preconditioner is not None:
            self.preconditioner.load(arrays, step)

    def result(self) -> dict[str, Tensor]:
        """Return the trained model's state dict."""
        return dict(self.model.state_dict())


def _compress(ddp: DistributedDataParallel, config: DataParallelConfig) -> None:
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook

    @wraps(powerSGD_hook.powerSGD_hook)  # DDP checks the signature
    def power_sgd(state: Any, bucket: Any) -> Any:
        with forked_generators(torch.device("cpu")):  # the hook seeds the global generator
            return powerSGD_hook.powerSGD_hook(state, bucket)

    if config.compression == "fp16":
        ddp.register_comm_hook(None, default_hooks.fp16_compress_hook)
        return
    state: Any = powerSGD_hook.PowerSGDState(
        None, matrix_approximation_rank=config.powersgd_rank, start_powerSGD_iter=config.powersgd_start
    )
    ddp.register_comm_hook(state, power_sgd)
