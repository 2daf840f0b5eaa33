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
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

from ..core.devices import Precision
from ..core.errors import ConfigError
from .torch_internals import BatchNormBase
from .wrappers import aliases, plain_names


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
    aliases : tuple of (str, str)
        Further names of tied tensors in the module's state dict, and the name that each has here.
    """

    floats: tuple[View, ...]
    integers: tuple[View, ...]
    trainable: int
    aliases: tuple[tuple[str, str], ...] = ()

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
        Changed in place: its parameters and its float32 and int64 buffers become views of the flat buffers. Buffers of
        other types (flags, half precision) stay its own and are copied. A compiled module, or one in DataParallel, has
        the names of the plain module. On the CPU at first; see :meth:`place`.

    Attributes
    ----------
    module : nn.Module
    layout : FlatLayout
    parameters : list of torch.Tensor
        The trained parameters, in the order of the layout.
    has_batch_norm : bool
        Whether a layer normalizes over the batch, and so needs more than one sample in training.
    precision : {"fp32", "bf16", "fp16"}
        In which losses are to be computed; the state is float32 in any case.

    Raises
    ------
    ConfigError
        A parameter is not float32 or has no shape yet, a buffer is complex, or the module is a DistributedDataParallel.
    """

    precision: Precision = "fp32"

    def __init__(self, module: nn.Module) -> None:
        self._adopt(module)

    def _adopt(self, module: nn.Module) -> None:
        self.module = module
        _check(module)
        named = [*module.named_parameters(), *_persistent_buffers(module)]
        names = plain_names(module, [name for name, _ in named])
        state = [(names[name], tensor) for name, tensor in named]
        trained = [(n, p) for n, p in state if p.requires_grad]
        kept = [(n, t) for n, t in state if not t.requires_grad]
        floats = [*trained, *((n, t) for n, t in kept if t.is_floating_point())]
        integers = [(n, t) for n, t in kept if not t.is_floating_point()]
        views = _views(floats), _views(integers)
        trainable = sum(p.numel() for _, p in trained)
        self.layout = FlatLayout(*views, trainable, tuple(aliases(module).items()))
        self._floats = _gather(floats, torch.float32)
        self._integers = _gather(integers, torch.int64)
        self._copied: list[tuple[torch.Tensor, torch.Tensor]] = []
        for (_, tensor), view in zip((*floats, *integers), (*views[0], *views[1]), strict=True):
            flat = self._floats if tensor.is_floating_point() else self._integers
            part = flat[view.start : view.start + view.count].view(view.shape)
            if tensor.dtype is flat.dtype:
                tensor.data = part
            else:
                self._copied.append((tensor, part))
        self.parameters: list[torch.Tensor] = [parameter for _, parameter in trained]
        self.has_batch_norm = any(isinstance(part, BatchNormBase) for part in module.modules())

    @property
    def floats(self) -> torch.Tensor:
        """(p + b,) float32: trained parameters, frozen parameters, float buffers."""
        self._collect()
        return self._floats

    @property
    def integers(self) -> torch.Tensor:
        """(n_t,) int64: integer buffers and flags."""
        self._collect()
        return self._integers

    @torch.no_grad()
    def _collect(self) -> None:
        """Copy the buffers that are no views into the flat buffers."""
        for tensor, part in self._copied:
            part.copy_(tensor)

    @property
    def device(self) -> torch.device:
        """The device of module and buffers."""
        return self._floats.device

    def place(self, device: torch.device, precision: Precision) -> None:
        """Move module and buffers to a device, and set the precision; tensors taken from the model before are stale."""
        self.precision = precision
        if device != self.device:
            self._adopt(self.module.to(device))

    def load(self, floats: NDArray[Any], integers: NDArray[Any]) -> None:
        """Copy a state of the same shapes and dtypes into the buffers; the arrays may be read-only."""
        if self._floats.is_cpu:
            np.copyto(self._floats.numpy(), floats, casting="no")
            np.copyto(self._integers.numpy(), integers, casting="no")
        else:
            self._floats.copy_(torch.from_numpy(np.require(floats, requirements="W")))
            self._integers.copy_(torch.from_numpy(np.require(integers, requirements="W")))
        for tensor, part in self._copied:
            tensor.data.copy_(part)

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
        return self._floats[: self.layout.trainable]


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
    parts = [t.detach().reshape(-1).to(dtype) for _, t in tensors]
    return torch.cat([torch.empty(0, dtype=dtype, device=device), *parts])


def _persistent_buffers(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    saved = module.state_dict(keep_vars=True)
    return [(name, buffer) for name, buffer in module.named_buffers() if name in saved]


def _check(module: nn.Module) -> None:
    if isinstance(module, DistributedDataParallel):
        raise ConfigError("the model is wrapped in DistributedDataParallel", hint="return the module that it wraps")
    for name, parameter in module.named_parameters():
        if is_lazy(parameter):
            raise ConfigError(
                f"the model's '{name}' has no shape yet", hint="call the model once with a batch before you return it"
            )
        if parameter.dtype is not torch.float32:
            raise ConfigError(
                f"the model's '{name}' is {parameter.dtype}; parameters have to be float32",
                hint="call .float() on the model; precision=bf16 or fp16 computes its losses in half precision",
            )
    for name, buffer in _persistent_buffers(module):
        if is_lazy(buffer):
            raise ConfigError(
                f"the model's '{name}' has no shape yet", hint="call the model once with a batch before you return it"
            )
        if buffer.is_complex():
            raise ConfigError(
                f"the model's buffer '{name}' is complex", hint="register it with persistent=False, or as two real ones"
            )


def _size(views: tuple[View, ...]) -> int:
    return sum(view.count for view in views)
