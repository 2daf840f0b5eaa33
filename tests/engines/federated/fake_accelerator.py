"""An accelerator that exists in name only: tensors with device ``cuda`` without data, on machines that have none.

Operations that mix devices fail as on a GPU. Transfers to the CPU return zeros. The autograd engine does not support
such tensors without a CUDA build, so backward passes are replaced by zero gradients of the right devices; that every
forward operation, optimizer step and transfer uses the right devices is checked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily

DEVICE = torch.device("cuda", 0)


def _zeros(tensor: torch.Tensor) -> torch.Tensor:
    with unset_fake_temporarily():
        return torch.zeros(tensor.shape, dtype=tensor.dtype)


def _numpy(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    assert tensor.device.type == "cpu", f"numpy() of a tensor on {tensor.device}"
    return _zeros(tensor).numpy()


def _leaves(node: Any, seen: set[Any]) -> Iterator[torch.Tensor]:
    """Yield the leaf tensors of an autograd graph."""
    if node is None or node in seen:
        return
    seen.add(node)
    if hasattr(node, "variable"):
        yield node.variable
    for following, _ in node.next_functions:
        yield from _leaves(following, seen)


def _backward(loss: torch.Tensor) -> None:
    leaves = list(_leaves(loss.grad_fn, set()))
    assert leaves, "the loss depends on no parameter"
    for leaf in leaves:
        leaf.grad = torch.zeros_like(leaf)


def _grad(loss: torch.Tensor, inputs: torch.Tensor) -> Sequence[torch.Tensor]:
    assert any(leaf is inputs for leaf in _leaves(loss.grad_fn, set()))
    return (torch.zeros_like(inputs),)


def _module_to(module: nn.Module, device: torch.device) -> nn.Module:
    """``Module.to`` without swapping tensors, which this kind of tensors does not support."""
    for each in module.modules():
        for name, parameter in each._parameters.items():
            if parameter is not None:
                moved = nn.Parameter(parameter.detach().to(device), requires_grad=parameter.requires_grad)
                each._parameters[name] = moved
        each._buffers.update({name: b.to(device) for name, b in each._buffers.items() if b is not None})
    return module


@contextmanager
def fake_accelerator(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compute on the fake accelerator wherever the device is chosen by :func:`resident_model`."""
    patch.setattr("farshore.engines.federated.compute.choose_device", lambda name: DEVICE)
    patch.setattr(FakeTensor, "cpu", _zeros, raising=False)
    patch.setattr(FakeTensor, "numpy", _numpy, raising=False)
    patch.setattr(FakeTensor, "tolist", lambda self: _zeros(self).tolist(), raising=False)
    patch.setattr(nn.Module, "to", _module_to)
    patch.setattr(torch.Tensor, "backward", _backward)
    patch.setattr(torch.autograd, "grad", _grad)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield
