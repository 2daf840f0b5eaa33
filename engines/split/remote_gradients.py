"""Gradients and optimizer of a remote segment, which follow what the user's process does to its own gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .config import OptimizerConfig

_OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
}


class RemoteGradients:
    """Gradients of a module's trainable parameters, and the optimizer that applies them.

    Parameters
    ----------
    module : nn.Module
        On its device.
    settings : OptimizerConfig
    """

    def __init__(self, module: nn.Module, settings: OptimizerConfig) -> None:
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self._optimizer: torch.optim.Optimizer | None = None
        if self.parameters:
            options: dict[str, Any] = settings.options()
            self._optimizer = _OPTIMIZERS[settings.name]([{"params": self.parameters}], **{"lr": 1e-3, **options})

    def change(self, dropped: bool, keep: float) -> None:
        """Drop all gradients, or scale them by ``keep``."""
        for parameter in self.parameters:
            if dropped:
                parameter.grad = None
            elif keep != 1.0 and parameter.grad is not None:
                parameter.grad.mul_(keep)

    def accumulate(self, gradients: Sequence[Tensor | None]) -> None:
        """Add new gradients, in the order of :attr:`parameters`; an empty sequence adds nothing."""
        for parameter, new in zip(self.parameters, gradients, strict=False):
            if new is not None:
                parameter.grad = new if parameter.grad is None else parameter.grad.add_(new)

    def norm(self) -> float:
        """Return the norm of all gradients."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0

    def step(self, learning_rate: float) -> None:
        """Take an optimizer step."""
        if self._optimizer is not None:
            for group in self._optimizer.param_groups:
                group["lr"] = learning_rate
            self._optimizer.step()
