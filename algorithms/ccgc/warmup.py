"""The warm-up loss, which aligns both views of a node and separates nodes, without any N x N matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from .ranks import Alone, Ranks, shared_total


def warmup_loss(first: Tensor, second: Tensor, nodes: int, ranks: Ranks | None = None) -> Tensor:
    """Return the mean over all N² entries of (E1 E2ᵀ − I)².

    By the Gram identity: ‖E1 E2ᵀ − I‖² = tr(E1ᵀE1 E2ᵀE2) − 2 Σ ⟨e1, e2⟩ + N, in O(N d²) time and O(d²) memory.

    Parameters
    ----------
    first, second : Tensor, shape [n, d]
        Rows of this rank.
    nodes : int
        N, of all ranks.
    ranks : Ranks, optional
        They add their Gram matrices, 2 d² + 1 numbers.
    """
    parts = torch.cat([(first.T @ first).reshape(-1), (second.T @ second).reshape(-1), (first * second).sum()[None]])
    total = shared_total(parts, ranks or Alone())
    one, two = total[:-1].chunk(2)
    return (one @ two - 2 * total[-1] + nodes) / nodes**2
