"""Optimizers by name, on a task's parameter groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from ...core.errors import ConfigError
from .config import TrainingConfig
from .task import ParameterGroup


def build_optimizer(
    config: TrainingConfig, model: nn.Module, groups: Sequence[ParameterGroup]
) -> torch.optim.Optimizer:
    """Return the configured optimizer; its groups have the additional key ``lr_scale``.

    Raises
    ------
    ConfigError
        The groups leave out a parameter that requires gradients, or contain one several times.
    """
    _check_groups(model, groups)
    values: list[dict[str, Any]] = [
        {
            "params": list(group.parameters),
            "weight_decay": config.weight_decay if group.weight_decay is None else group.weight_decay,
            "lr_scale": group.lr_scale,
        }
        for group in groups
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            values,
            config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.nesterov,
        )
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(values, config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay)


def set_hyperparameters(optimizer: torch.optim.Optimizer, lr: float, momentum: float | None) -> None:
    """Set the learning rate of all groups, times their scale, and their momentum or first beta unless None."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
        if momentum is None:
            continue
        if "betas" in group:
            group["betas"] = (momentum, group["betas"][1])
        else:
            group["momentum"] = momentum


def trained_parameters(optimizer: torch.optim.Optimizer) -> Iterable[nn.Parameter]:
    """Yield the parameters of all groups."""
    for group in optimizer.param_groups:
        yield from group["params"]


def _check_groups(model: nn.Module, groups: Sequence[ParameterGroup]) -> None:
    listed = Counter(id(p) for group in groups for p in group.parameters)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and listed[id(parameter)] != 1:
            times = "in several parameter groups" if listed[id(parameter)] else "in no parameter group"
            raise ConfigError(f"the parameter '{name}' is {times}", hint="check the task's parameter_groups")
