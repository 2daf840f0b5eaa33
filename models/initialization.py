"""First weights from a seed, without a look at the global generator."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm)


def seeded(make: Callable[[], Module], seed: int) -> Module:
    """A module on the CPU whose first weights depend on ``seed`` only.

    Parameters
    ----------
    make : callable
        Makes the module of convolutions, linear layers and norms. It is called where tensors have no memory.
    seed : int
        0 to 2^63 - 1.

    Raises
    ------
    TypeError
        The module has weights of a kind that has no rule here.
    """
    with torch.device("meta"):
        module = make()
    module.to_empty(device="cpu")
    initialize(module, torch.Generator().manual_seed(seed))
    return module


@torch.no_grad()
def initialize(module: nn.Module, generator: torch.Generator) -> None:
    """Draw weights and biases of ``module`` uniformly within 1/√(fan in), norms start as the identity.

    Everything is overwritten, buffers too. The order is that of the modules, so what comes first does not depend on
    the size of what comes last: a wider head leaves the rest alone.
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
            raise TypeError(f"no rule for the first weights of {type(part).__name__}")


def uniform(tensor: Tensor, fan: int, generator: torch.Generator) -> None:
    """Fill ``tensor`` with numbers uniform within ±1/√fan."""
    bound = 1 / math.sqrt(fan)
    tensor.uniform_(-bound, bound, generator=generator)


def fan_in(part: nn.Conv2d | nn.ConvTranspose2d | nn.Linear) -> int:
    """Inputs that one output of ``part`` sums over, as PyTorch counts them for its own first weights."""
    # A transposed convolution keeps its output channels second, and PyTorch takes those.
    return part.weight[0].numel()
