"""Multi-layer perceptrons: a classifier and the deep autoencoder of K-FAC experiments (arXiv 1503.05671)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn


def perceptron(sizes: Sequence[int], activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers of the given sizes with an activation between them; inputs (N, …) are flattened first."""
    parts: list[nn.Module] = [nn.Flatten()]
    for index, (width, out) in enumerate(itertools.pairwise(sizes)):
        parts += [activation()] * (index > 0) + [nn.Linear(width, out)]
    return nn.Sequential(*parts)


def autoencoder(sizes: Sequence[int] = (64, 100, 50, 10, 50, 100, 64)) -> nn.Sequential:
    """The deep autoencoder of K-FAC's experiments for 8 x 8 digits, (N, 64) to (N, 64)."""
    return perceptron(sizes, nn.Tanh)


def reconstruction_loss(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Half the squared error, summed over pixels and averaged over the batch."""
    return 0.5 * (reconstruction - images.flatten(1)).pow(2).sum(dim=1).mean()
