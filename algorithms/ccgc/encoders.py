"""The two linear encoders, which see the same smoothed attributes and give two views of each node."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class Encoders(nn.Module):
    """Two Linear(D, d) without hidden layer or activation; rows of their outputs have unit length.

    Parameters
    ----------
    width, dim : int
        D and d.
    seed : int
        Of the weights, which are uniform in ±1/√D as those of ``nn.Linear``.
    shared : bool
        Use one encoder for both views.
    """

    def __init__(self, width: int, dim: int, seed: int, *, shared: bool = False) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        self.first = _linear(width, dim, random)
        self.second = self.first if shared else _linear(width, dim, random)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return both views (n, d) of smoothed attributes (n, D)."""
        first = functional.normalize(self.first(x))
        return first, first if self.second is self.first else functional.normalize(self.second(x))

    @torch.no_grad()
    def embed(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return both views and their mean, the fused embedding; without gradients."""
        first, second = self(x)
        return first, second, (first + second) / 2


def _linear(width: int, dim: int, random: torch.Generator) -> nn.Linear:
    made = nn.Linear(width, dim, device="meta").to_empty(device="cpu")
    bound = 1 / math.sqrt(width)
    with torch.no_grad():
        made.weight.uniform_(-bound, bound, generator=random)
        made.bias.uniform_(-bound, bound, generator=random)
    return made
