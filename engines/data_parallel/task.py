"""What a training method gives to the engine: a model, batches, a loss and an evaluation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeAlias, TypeVar

from torch import Tensor, nn

from ...core.message import Array

Batch = TypeVar("Batch")

#: How labels are distributed around a model's outputs: ``classes``, softmax over axis 1; ``normal``, unit variance.
Distribution: TypeAlias = Literal["classes", "normal"]


@dataclass(frozen=True)
class Loss:
    """The loss of one batch.

    Parameters
    ----------
    total : Tensor
        Scalar that is differentiated; a mean over the batch's samples.
    terms : Mapping of str to Tensor
        Its named parts, scalars. With two or more, each is a figure of the run. The names are the same in every step.
    outputs : Tensor, optional
        The model's outputs (N, classes, …) or (N, …) from which a preconditioner may sample labels.
    distribution : {"classes", "normal"}
        Distribution of these labels.
    """

    total: Tensor
    terms: Mapping[str, Tensor] = field(default_factory=dict)
    outputs: Tensor | None = None
    distribution: Distribution = "classes"


@dataclass(frozen=True)
class Score:
    """The metric by which evaluations are compared.

    Parameters
    ----------
    name : str
        One of the task's :attr:`TrainTask.metrics`.
    higher_is_better : bool
    """

    name: str
    higher_is_better: bool = True


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters with optimizer settings of their own.

    Parameters
    ----------
    parameters : sequence of Parameter
    weight_decay : float, optional
        Default: that of the configuration.
    lr_scale : float
        Multiplies the learning rate.
    """

    parameters: Sequence[nn.Parameter]
    weight_decay: float | None = None
    lr_scale: float = 1.0


class TrainTask(ABC, Generic[Batch]):
    """A model and how it is trained and evaluated; every rank has its own instance, made from the same seed.

    Attributes
    ----------
    model : Module
        With its initial weights, the same on all ranks; the engine moves it to the device.
    metrics : tuple of str
        Names of the figures that :meth:`evaluate` returns.
    score : Score, optional
        What ``keep_best`` and ``early_stop`` go by.
    find_unused_parameters : bool
        Whether a step may leave out parameters that require gradients, as one of a sampled sub-network does.
    """

    model: nn.Module
    metrics: tuple[str, ...]
    score: Score | None = None
    find_unused_parameters: bool = False

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """Return the optimizer's parameter groups; by default one with all parameters that require gradients."""
        return [ParameterGroup([p for p in self.model.parameters() if p.requires_grad])]

    @abstractmethod
    def steps_per_epoch(self, ranks: int) -> int:
        """Return the number of batches of an epoch for each of ``ranks`` ranks."""

    @abstractmethod
    def batch(self, index: int, rank: int, ranks: int) -> Batch:
        """Return a rank's batch: CPU tensors in any nesting of mappings, lists, tuples and dataclasses.

        The arguments alone determine it, so that a resumed run sees the same batches.

        Parameters
        ----------
        index : int
            The step; with gradient accumulation over k batches, step s uses the batches k s … k s + k - 1.
        """

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Return the loss of a batch.

        ``model`` computes as :attr:`model` does, and is to be called once: it is the DistributedDataParallel around it
        if there are several ranks. The batch is on the model's device, autocast is on, and torch's global generators
        are seeded by step and rank.
        """

    @abstractmethod
    def evaluate(self, model: nn.Module) -> Mapping[str, float]:
        """Return the figures that :attr:`metrics` names; called on rank 0 without gradients, in evaluation mode.

        ``model`` is :attr:`model`, or a copy with averaged weights; it is on the device of its parameters.
        """

    def state(self) -> Mapping[str, Array]:
        """Return what else belongs into a checkpoint, by name."""
        return {}

    def load_state(self, arrays: Mapping[str, Array]) -> None:
        """Restore what :meth:`state` returned, on this rank or another one."""


def decay_groups(model: nn.Module, also_without: Sequence[str] = ()) -> list[ParameterGroup]:
    """Split a model's trainable parameters into those with weight decay and those without.

    Parameters of fewer than two axes (biases, and scales of normalization layers) have none.

    Parameters
    ----------
    also_without : sequence of str
        Parts of names whose parameters have none either.
    """

    def is_without(name: str, parameter: nn.Parameter) -> bool:
        return parameter.dim() < 2 or any(part in name for part in also_without)

    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    with_decay = [p for name, p in named if not is_without(name, p)]
    without = [p for name, p in named if is_without(name, p)]
    groups = [ParameterGroup(with_decay), ParameterGroup(without, weight_decay=0.0)]
    return [group for group in groups if group.parameters]


def named_terms(loss: Loss) -> Iterator[tuple[str, Tensor]]:
    """Yield the figures of a loss: its total and, if there are several, its terms."""
    yield "loss", loss.total
    if len(loss.terms) > 1:
        yield from loss.terms.items()
