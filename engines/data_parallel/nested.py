"""Moves nested structures of tensors between devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

T = TypeVar("T")


def to_device(values: T, device: torch.device) -> T:
    """Return a structure with its tensors on ``device``; other leaves, and tensors that are there already, are shared.

    Parameters
    ----------
    values
        A tensor, or mappings, lists, tuples (named or not) and dataclasses of tensors and other values.
    """
    return cast(T, _moved(values, device))


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's parameters."""
    return next(model.parameters()).device


def _moved(values: Any, device: torch.device) -> Any:
    if isinstance(values, Tensor):
        return values.to(device, non_blocking=True)
    if isinstance(values, Mapping):
        return {key: _moved(value, device) for key, value in values.items()}
    if isinstance(values, tuple) and hasattr(values, "_fields"):
        return type(values)(*(_moved(value, device) for value in values))
    if isinstance(values, list | tuple):
        return type(values)(_moved(value, device) for value in values)
    if is_dataclass(values) and not isinstance(values, type):
        return replace(values, **{f.name: _moved(getattr(values, f.name), device) for f in fields(values) if f.init})
    return values
