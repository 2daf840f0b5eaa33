"""A model as one float buffer and one integer buffer, its parameters and buffers being views of them.

So a state is copied, averaged and sent in one piece, and an optimizer's step over all parameters is a handful of
operations however many layers there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class View:
    """Where a tensor of a module's state lies: elements ``start … start + count - 1`` of a buffer."""

    name: str
    shape: tuple[int, ...]
    start: int

    @property
    def count(self) -> int:
        """Elements."""
        return int(torch.Size(self.shape).numel())


@dataclass(frozen=True, slots=True)
class FlatLayout:
    """What a flat state holds, the same for every copy of a model.

    Attributes
    ----------
    floats, integers : tuple of View
        Of the float buffer, parameters first; of the integer buffer (``num_batches_tracked``).
    trainable : int
        Elements of parameters that are trained: the first of the float buffer.
    """

    floats: tuple[View, ...]
    integers: tuple[View, ...]
    trainable: int

    @property
    def total(self) -> int:
        """Elements of the float buffer, p + b."""
        return _size(self.floats)

    @property
    def payload_bytes(self) -> int:
        """Bytes of one state as it travels raw: the ``P`` of the specification of VHL, section 3.4."""
        return 4 * self.total + 8 * _size(self.integers)


class FlatModel:
    """A module whose state lives in two buffers.

    Parameters
    ----------
    module : nn.Module
        Its parameters and buffers are moved; float32 and int64 only.

    Attributes
    ----------
    module : nn.Module
    layout : Layout
    floats : torch.Tensor
        (p + b,) float32: trained parameters, frozen parameters, float buffers.
    integers : torch.Tensor
        (n_t,) int64.
    parameters : list of torch.Tensor
        The trained ones, in the order of the layout.

    Raises
    ------
    ConfigError
        The state holds other types than float32 and int64.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        trained = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
        frozen = [(n, p) for n, p in module.named_parameters() if not p.requires_grad]
        buffers = [(n, b) for n, b in module.named_buffers() if n in module.state_dict(keep_vars=True)]
        floats = [*trained, *frozen, *((n, b) for n, b in buffers if b.is_floating_point())]
        integers = [(n, b) for n, b in buffers if not b.is_floating_point()]
        _check(floats, torch.float32)
        _check(integers, torch.int64)
        views = _views(floats), _views(integers)
        self.layout = FlatLayout(*views, trainable=sum(p.numel() for _, p in trained))
        self.floats = _gather(floats, torch.float32)
        self.integers = _gather(integers, torch.int64)
        for (_, tensor), view in zip((*floats, *integers), (*views[0], *views[1]), strict=True):
            home = self.floats if tensor.is_floating_point() else self.integers
            tensor.data = home[view.start : view.start + view.count].view(view.shape)
        self.parameters: list[torch.Tensor] = [parameter for _, parameter in trained]

    def load(self, floats: NDArray[Any], integers: NDArray[Any]) -> None:
        """Take over a state that may be read-only, of the shapes and types of this one."""
        np.copyto(self.floats.numpy(), floats, casting="no")
        np.copyto(self.integers.numpy(), integers, casting="no")

    def clear_gradients(self) -> None:
        """Forget the parameters' gradients: the next ones are then kept as they come, not added to zeros."""
        for parameter in self.parameters:
            parameter.grad = None

    def gradients(self) -> list[torch.Tensor]:
        """One for each of ``parameters``, zeros where a loss did not depend on it."""
        return [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]

    def cut(self, vector: torch.Tensor) -> list[torch.Tensor]:
        """Views of a vector (trainable,), one for each of ``parameters`` and of its shape."""
        pieces = torch.split(vector, [p.numel() for p in self.parameters])
        return [piece.view(p.shape) for piece, p in zip(pieces, self.parameters, strict=True)]

    @property
    def trained(self) -> torch.Tensor:
        """(trainable,) view of the parameters that are trained."""
        return self.floats[: self.layout.trainable]


def _views(tensors: list[tuple[str, torch.Tensor]]) -> tuple[View, ...]:
    views, start = [], 0
    for name, tensor in tensors:
        views.append(View(name, tuple(tensor.shape), start))
        start += tensor.numel()
    return tuple(views)


def _gather(tensors: list[tuple[str, torch.Tensor]], dtype: torch.dtype) -> torch.Tensor:
    return torch.cat([torch.empty(0, dtype=dtype), *(t.detach().reshape(-1) for _, t in tensors)])


def _check(tensors: list[tuple[str, torch.Tensor]], dtype: torch.dtype) -> None:
    for name, tensor in tensors:
        if tensor.dtype is not dtype:
            raise ConfigError(f"the model's '{name}' is {tensor.dtype}; float32 and int64 states are supported")


def _size(views: tuple[View, ...]) -> int:
    return sum(view.count for view in views)
