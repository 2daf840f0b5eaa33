"""Seeded weight initialization that does not use PyTorch's global generator."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm)


def seeded(make: Callable[[], Module], seed: int) -> Module:
    """Build a module on the CPU whose initial weights depend on ``seed`` only.

    Parameters
    ----------
    make : callable
        Returns the module, made of convolutions, linear layers and norms; called on the ``meta`` device.
    seed : int
        0 to 2^63 - 1.

    Raises
    ------
    TypeError
        The module has a layer with parameters that :func:`initialize` does not support.
    """
    with torch.device("meta"):
        module = make()
    module.to_empty(device="cpu")
    initialize(module, torch.Generator().manual_seed(seed))
    return module


@torch.no_grad()
def initialize(module: nn.Module, generator: torch.Generator) -> None:
    """Draw weights and biases of ``module`` uniformly within ±1/√fan_in; norms start as the identity.

    All parameters and buffers are overwritten, in the order of the modules: a wider head does not change the layers
    before it.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            for tensor in (part.weight, part.bias):
                if tensor is not None:
                    uniform(tensor, fan_in(part), generator)
        elif isinstance(part, _NORMS):
            part.weight.fill_(1)
            part.bias.fill_(0)
            if not isinstance(part, nn.GroupNorm):
                part.reset_running_stats()
        elif any(True for _ in part.parameters(recurse=False)):
            raise TypeError(f"cannot initialize the weights of {type(part).__name__}")


def uniform(tensor: Tensor, fan: int, generator: torch.Generator) -> None:
    """Fill ``tensor`` from the uniform distribution on ±1/√fan."""
    bound = 1 / math.sqrt(fan)
    tensor.uniform_(-bound, bound, generator=generator)


def fan_in(part: nn.Conv2d | nn.ConvTranspose2d | nn.Linear) -> int:
    """Fan-in of a layer as PyTorch's own initialization counts it."""
    # For a transposed convolution, dimension 1 is the output channels, and PyTorch counts those.
    return part.weight[0].numel()
