"""Where and how a federated program computes: its model on the chosen device, and losses in the chosen precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from ...core.devices import ComputeSettings
from ...models.devices import autocast, choose_device
from ...models.flat_params import FlatModel

if TYPE_CHECKING:
    from .task import Task

#: Factor of ``fp16`` losses, without which small gradients would be 0; halved when a gradient overflows.
LOSS_SCALE = 1024.0


def resident_model(task: Task, compute: ComputeSettings) -> FlatModel:
    """Create the task's model on the chosen device.

    Raises
    ------
    ConfigError
        This machine does not have the device.
    """
    flat = task.model()
    flat.place(choose_device(compute.device), compute.precision)
    return flat


def batch_loss(flat: FlatModel, objective: Callable[[Any], torch.Tensor], batch: Any) -> torch.Tensor:
    """Return the loss of a batch, moved to the model's device and computed in its precision."""
    if not flat.floats.is_cpu:
        batch = to_device(batch, flat.device)
    if flat.precision == "fp32":
        return objective(batch)
    with autocast(flat.device, flat.precision):
        return objective(batch)


def to_device(batch: Any, device: torch.device) -> Any:
    """Move the tensors of a batch: anything with a method ``to``, in tuples, lists and dicts; other values stay."""
    if hasattr(batch, "to"):
        return batch.to(device)
    if isinstance(batch, dict):
        return {name: to_device(part, device) for name, part in batch.items()}
    if isinstance(batch, tuple | list):
        parts = [to_device(part, device) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    return batch
