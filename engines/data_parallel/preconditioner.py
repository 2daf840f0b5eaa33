"""Preconditioners: what changes the gradients between the backward pass and the optimizer's step; torch-free."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

from pydantic import BaseModel, ConfigDict

from ...core.message import Array

if TYPE_CHECKING:
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel
    from torch.optim import Optimizer

    from .task import Loss

#: ``name -> "module:class"`` of each preconditioner's settings, imported when a run uses it.
SETTINGS: dict[str, str] = {"dp_kfac": "farshore.algorithms.dp_kfac.settings:KFACSettings"}


class Preconditioner(Protocol):
    """Changes the gradients between the backward pass and the optimizer's step."""

    def attach_ddp(self, ddp: DistributedDataParallel) -> None:
        """Use the DDP wrapper of the model for the gradient exchange."""

    def set_gradient_scale(self, scale: float) -> None:
        """Set the factor by which the losses and gradients of the next step are multiplied."""

    def after_forward(self, loss: Loss) -> None:
        """Called between each forward pass and its backward pass."""

    def step(self) -> None:
        """Change the gradients, still scaled; called after the last backward pass of a step, on all ranks."""

    def step_skipped(self) -> None:
        """Called on all ranks when the optimizer ignored the step because gradients were not finite."""

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


class PreconditionerSettings(BaseModel):
    """Base class of a preconditioner's settings."""

    model_config = ConfigDict(extra="forbid")

    def check_scheme(self) -> None:
        """Raise ValueError if settings contradict each other."""

    def make(self, model: nn.Module, optimizer: Optimizer, accumulate: int) -> Preconditioner:
        """Return the preconditioner of a model.

        Parameters
        ----------
        accumulate : int
            Backward passes per step; each loss is divided by it.
        """
        raise NotImplementedError


def load_settings(name: str) -> type[PreconditionerSettings]:
    """Import the settings of the preconditioner called ``name``, one of :data:`SETTINGS`."""
    module, _, attribute = SETTINGS[name].partition(":")
    return cast("type[PreconditionerSettings]", getattr(import_module(module), attribute))
