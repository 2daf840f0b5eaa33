"""A module whose state is one float32 vector and one int64 vector, of which its parameters and buffers are views.

A state is thus copied, averaged and sent as a whole, without a loop over the layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..core.devices import Precision
from ..core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class View:
    """Position of one state tensor in a flat buffer: elements ``start`` to ``start + count - 1``."""

    name: str
    shape: tuple[int, ...]
    start: int

    @property
    def count(self) -> int:
        """Number of elements."""
        return int(torch.Size(self.shape).numel())


@dataclass(frozen=True, slots=True)
class FlatLayout:
    """Positions of all state tensors of a model in its two flat buffers.

    Attributes
    ----------
    floats : tuple of View
        Tensors of the float buffer: trained parameters, frozen parameters, float buffers.
    integers : tuple of View
        Tensors of the integer buffer (``num_batches_tracked``).
    trainable : int
        Elements of trained parameters, p; they come first in the float buffer.
    """

    floats: tuple[View, ...]
    integers: tuple[View, ...]
    trainable: int

    @property
    def total(self) -> int:
        """Elements of the float buffer, p + b (b: elements that are not trained)."""
        return _size(self.floats)

    @property
    def payload_bytes(self) -> int:
        """Bytes of one state sent without an encoding, P = 4 (p + b) + 8 n_t."""
        return 4 * self.total + 8 * _size(self.integers)


class FlatModel:
    """A module and the two flat buffers that hold its state.

    Parameters
    ----------
    module : nn.Module
        Changed in place: its parameters and buffers become views of the flat buffers. float32 and int64 only. On the
        CPU at first; see :meth:`place`.

    Attributes
    ----------
    module : nn.Module
    layout : FlatLayout
    floats : torch.Tensor
        (p + b,) float32: trained parameters, frozen parameters, float buffers.
    integers : torch.Tensor
        (n_t,) int64.
    parameters : list of torch.Tensor
        The trained parameters, in the order of the layout.
    precision : {"fp32", "bf16", "fp16"}
        In which losses are to be computed; the state is float32 in any case.

    Raises
    ------
    ConfigError
        The state has a tensor that is neither float32 nor int64.
    """

    precision: Precision = "fp32"

    def __init__(self, module: nn.Module) -> None:
        self._adopt(module)

    def _adopt(self, module: nn.Module) -> None:
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
            buffer = self.floats if tensor.is_floating_point() else self.integers
            tensor.data = buffer[view.start : view.start + view.count].view(view.shape)
        self.parameters: list[torch.Tensor] = [parameter for _, parameter in trained]

    @property
    def device(self) -> torch.device:
        """The device of module and buffers."""
        return self.floats.device

    def place(self, device: torch.device, precision: Precision) -> None:
        """Move module and buffers to a device, and set the precision; tensors taken from the model before are stale."""
        self.precision = precision
        if device != self.device:
            self._adopt(self.module.to(device))

    def load(self, floats: NDArray[Any], integers: NDArray[Any]) -> None:
        """Copy a state of the same shapes and dtypes into the buffers; the arrays may be read-only."""
        if self.floats.is_cpu:
            np.copyto(self.floats.numpy(), floats, casting="no")
            np.copyto(self.integers.numpy(), integers, casting="no")
            return
        self.floats.copy_(torch.from_numpy(np.require(floats, requirements="W")))
        self.integers.copy_(torch.from_numpy(np.require(integers, requirements="W")))

    def clear_gradients(self) -> None:
        """Set the gradients to None, so that the next backward pass stores them instead of adding to zeros."""
        for parameter in self.parameters:
            parameter.grad = None

    def gradients(self) -> list[torch.Tensor]:
        """Gradients of ``parameters``; zeros for a parameter that the loss does not depend on."""
        return [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]

    def unflatten(self, vector: torch.Tensor) -> list[torch.Tensor]:
        """Split a vector (trainable,) into views with the shapes of ``parameters``."""
        pieces = torch.split(vector, [p.numel() for p in self.parameters])
        return [piece.view(p.shape) for piece, p in zip(pieces, self.parameters, strict=True)]

    @property
    def trained(self) -> torch.Tensor:
        """The trained parameters as one view, (trainable,)."""
        return self.floats[: self.layout.trainable]


def host_array(tensor: torch.Tensor) -> NDArray[Any]:
    """Return a tensor's values on the CPU: a view of a CPU tensor, a copy of any other."""
    return tensor.detach().cpu().numpy()


def _views(tensors: list[tuple[str, torch.Tensor]]) -> tuple[View, ...]:
    views, start = [], 0
    for name, tensor in tensors:
        views.append(View(name, tuple(tensor.shape), start))
        start += tensor.numel()
    return tuple(views)


def _gather(tensors: list[tuple[str, torch.Tensor]], dtype: torch.dtype) -> torch.Tensor:
    device = tensors[0][1].device if tensors else None
    return torch.cat([torch.empty(0, dtype=dtype, device=device), *(t.detach().reshape(-1) for _, t in tensors)])


def _check(tensors: list[tuple[str, torch.Tensor]], dtype: torch.dtype) -> None:
    for name, tensor in tensors:
        if tensor.dtype is not dtype:
            raise ConfigError(f"the model's '{name}' is {tensor.dtype}; only float32 and int64 are supported")


def _size(views: tuple[View, ...]) -> int:
    return sum(view.count for view in views)
