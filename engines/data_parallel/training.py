"""One rank's training step for any task; the same on nodes, under torchrun and in Ray actors."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ...core.errors import ConfigError, RunFailedError
from ...core.seeds import Seed
from ...models.devices import autocast, choose_device, gradient_scaler, seed_generators, seeded_generators
from ...models.torch_internals import rank_is_thread
from .averaging import WeightAverage
from .compression import compress
from .config import TrainingConfig
from .nested import to_device
from .optimizers import build_optimizer, set_hyperparameters, trained_parameters
from .protocol import TOTAL
from .schedules import learning_rate, momentum
from .scores import ScoreTracker
from .task import Loss, TrainTask, named_terms

#: Figures of the engine, which no term of a loss may have as its name.
_RESERVED = ("loss", "lr", TOTAL, "what")
_LOSS: tuple[str, ...] = ("loss",)
_NO_CONTEXT: AbstractContextManager[object] = nullcontext()


class Training:
    """One rank's model, optimizer and step.

    With more than one rank the default process group must exist.

    Parameters
    ----------
    config : TrainingConfig
    task : TrainTask
    seed : Seed
        Of the run; the random numbers of a step, such as dropout, derive from it.
    rank, ranks : int

    Attributes
    ----------
    total_steps : int
        Steps of the whole run.
    wrapped : Module
        The model, wrapped by DDP after :meth:`wrap_ddp`.
    average : WeightAverage or None
    preconditioner : Preconditioner or None
    tracker : ScoreTracker or None
        The best score so far, if the best state or early stopping need it.

    Raises
    ------
    ConfigError
        The configuration does not fit the task.
    """

    def __init__(self, config: TrainingConfig, task: TrainTask[Any], seed: Seed, rank: int, ranks: int) -> None:
        self.config, self.task, self.rank, self.ranks = config, task, rank, ranks
        self.device = choose_device(config.device)
        self.model = task.model.to(self.device)
        self.total_steps = total_steps(config, task, ranks)
        # Before the preconditioner hooks the model: the average is a copy of it.
        self.average = WeightAverage(self.model, config.ema, config.ema_warmup) if config.ema else None
        self.optimizer = build_optimizer(config, self.model, task.parameter_groups())
        self.scaler = gradient_scaler(self.device, config.precision)
        settings = config.preconditioner_settings()
        self.preconditioner = settings.make(self.model, self.optimizer, config.accumulate) if settings else None
        self.tracker = _tracker(config, task)
        self.wrapped: nn.Module = self.model
        self.term_names = _LOSS
        self._noise = seed.child("noise", "rank", rank).value
        self._shares_generators = rank_is_thread()

    @property
    def parameters(self) -> int:
        """Number of trainable parameters."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    @property
    def evaluated_model(self) -> nn.Module:
        """The model that is evaluated and saved: the average of the weights, if there is one."""
        return self.model if self.average is None else self.average.model

    def wrap_ddp(self) -> None:
        """Wrap the model in DDP, once its state is loaded."""
        if self.ranks == 1:
            return
        # DDP broadcasts rank 0's weights and buffers when it is made.
        ddp = DistributedDataParallel(self.model, find_unused_parameters=self.task.find_unused_parameters)
        self.wrapped = ddp
        if self.preconditioner is not None:
            self.preconditioner.attach_ddp(ddp)
        else:
            compress(ddp, self.config)

    # -- a step ---------------------------------------------------------------------------------------------------

    def step(self, number: int) -> Tensor:
        """Train one step; torch's global generators are left as it seeded them.

        Returns
        -------
        Tensor
            This rank's loss, a scalar; or, if it has several terms, the loss and its terms, as :attr:`term_names` names
            them. On the device.
        """
        set_hyperparameters(self.optimizer, self.lr(number), momentum(self.config, number, self.total_steps))
        self.optimizer.zero_grad()
        if self.preconditioner is not None:
            self.preconditioner.set_gradient_scale(self._gradient_scale())
        count = self.config.accumulate
        first = number * count
        if count == 1:
            values = self._backward(first)
        else:
            with self._without_exchange():
                parts = [self._backward(index) for index in range(first, first + count - 1)]
            values = torch.stack([*parts, self._backward(first + count - 1)]).mean(dim=0)
        self._update()
        return values

    def _backward(self, index: int) -> Tensor:
        batch = self.task.batch(index, self.rank, self.ranks)
        if self.device.type != "cpu":
            batch = to_device(batch, self.device)
        with self._seeded(index), self._autocast():
            loss = self.task.loss(self.wrapped, batch)
        if self.preconditioner is not None:
            self.preconditioner.after_forward(loss)
        total = loss.total if self.config.accumulate == 1 else loss.total / self.config.accumulate
        self.scaler.scale(total).backward()  # type: ignore[no-untyped-call]
        return self._figures(loss)

    def _seeded(self, index: int) -> AbstractContextManager[object]:
        """Seed torch's global generators for a batch; ranks that share them take turns."""
        # Arithmetic instead of a child of the seed for each batch: a hash costs as much as a small layer.
        seed = (self._noise + index) % (1 << 63)
        if self._shares_generators:
            return seeded_generators(self.device, seed)
        seed_generators(self.device, seed)
        return _NO_CONTEXT

    def _update(self) -> None:
        """Change the weights by the gradients: precondition, unscale, clip, step, average; in this order."""
        if self.preconditioner is not None:
            self.preconditioner.step()
        scale = self._gradient_scale()
        if self.config.clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(trained_parameters(self.optimizer), self.config.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self._gradient_scale() < scale:  # gradients were not finite, on all ranks: the optimizer did not step
            if self.preconditioner is not None:
                self.preconditioner.step_skipped()
        elif self.average is not None:
            self.average.update(self.model)

    def _figures(self, loss: Loss) -> Tensor:
        if len(loss.terms) < 2 and self.term_names == _LOSS:
            return loss.total.detach()
        terms = dict(named_terms(loss))
        if self.term_names != tuple(terms):
            reserved = [name for name in loss.terms if name in _RESERVED]
            if reserved or self.term_names != _LOSS:
                problem = f"a term has the reserved name '{reserved[0]}'" if reserved else "the names of terms changed"
                raise RunFailedError(f"the task's loss is invalid: {problem}")
            self.term_names = tuple(terms)
        return torch.stack([value.detach().float() for value in terms.values()])

    def _autocast(self) -> AbstractContextManager[object]:
        return _NO_CONTEXT if self.config.precision == "fp32" else autocast(self.device, self.config.precision)

    def _gradient_scale(self) -> float:
        return self.scaler.get_scale() if self.scaler.is_enabled() else 1.0

    def _without_exchange(self) -> AbstractContextManager[Any]:
        return self.wrapped.no_sync() if isinstance(self.wrapped, DistributedDataParallel) else nullcontext()

    # -- figures --------------------------------------------------------------------------------------------------

    def lr(self, number: int) -> float:
        """Return the learning rate of a step."""
        return learning_rate(self.config, number, self.total_steps)

    def mean_over_ranks(self, values: Tensor) -> dict[str, float]:
        """Return the means of what :meth:`step` returned over all ranks, by name; a collective."""
        means = values.reshape(-1).cpu().double()  # MPS has no float64
        if self.ranks > 1:
            means = means.to(collective_device())
            dist.all_reduce(means)
        return dict(zip(self.term_names, (means / self.ranks).tolist(), strict=True))

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Return the task's metrics.

        Raises
        ------
        RunFailedError
            They are not those that the task names.
        """
        model = self.evaluated_model
        was_training = model.training
        model.eval()
        with self._autocast():
            found = {name: float(value) for name, value in self.task.evaluate(model).items()}
        model.train(was_training)
        if set(found) != set(self.task.metrics):
            raise RunFailedError(
                f"the task's evaluation returned {', '.join(sorted(found))}, but it names "
                f"{', '.join(sorted(self.task.metrics))} as its metrics"
            )
        return found

    def score(self, metrics: Mapping[str, float], done: int) -> bool:
        """Add an evaluation after ``done`` steps; return whether its score is the best so far."""
        return self.tracker is not None and self.tracker.add(metrics[self.tracker.score.name], done)

    def share_score(self) -> None:
        """Let all ranks know rank 0's best score, so that they stop at the same step; a collective."""
        if self.tracker is None or self.ranks == 1:
            return
        state = torch.from_numpy(self.tracker.array()).to(collective_device())
        dist.broadcast(state, 0)
        self.tracker.load(state.cpu().numpy())

    def result(self) -> dict[str, Tensor]:
        """Return the state dict of the model that is saved, on the CPU."""
        return {name: tensor.cpu() for name, tensor in self.evaluated_model.state_dict().items()}


def total_steps(config: TrainingConfig, task: TrainTask[Any], ranks: int) -> int:
    """Return the steps of a run with a number of ranks."""
    return config.steps or max(1, config.epochs * task.steps_per_epoch(ranks) // config.accumulate)


def collective_device() -> torch.device:
    """Return a device whose tensors the default process group accepts."""
    return torch.device("cuda" if str(dist.get_backend()) == "nccl" else "cpu")


def _tracker(config: TrainingConfig, task: TrainTask[Any]) -> ScoreTracker | None:
    if not config.tracks_score:
        return None
    if task.score is None or task.score.name not in task.metrics:
        raise ConfigError(
            "keep_best and early_stop need a score, but the task names none of its metrics as such",
            hint="set the task's score",
        )
    return ScoreTracker(task.score, config.early_stop)
