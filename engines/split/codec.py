"""A linear code at each border: d numbers of a token become r, and d again on the other side.

The half of each border that makes a code starts as r orthonormal directions; the half that rebuilds starts as their
transpose. The first batch then turns them into the principal directions of what really crosses the border.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .factors import Basis, pca_basis, random_basis


class LinearCodec(nn.Module):
    """One side's two halves: ``encode`` d → r for what it sends, ``decode`` r → d for what it gets.

    Parameters
    ----------
    hidden, rank : int
        d and r.
    """

    def __init__(self, hidden: int, rank: int) -> None:
        super().__init__()
        self.encode = _empty(hidden, rank, bias=False)
        self.decode = _empty(rank, hidden)
        nn.init.zeros_(self.encode.weight)
        nn.init.zeros_(self.decode.weight)
        nn.init.zeros_(self.decode.bias)

    @torch.no_grad()
    def start_encoder(self, basis: Basis) -> None:
        """Take the directions."""
        self.encode.weight.copy_(basis.s @ basis.v)

    @torch.no_grad()
    def start_decoder(self, matrix: Tensor, offset: Tensor) -> None:
        """Take what rebuilds: R [d, r] and c [d]."""
        self.decode.weight.copy_(matrix)
        self.decode.bias.copy_(offset)


def _empty(inputs: int, outputs: int, *, bias: bool = True) -> nn.Linear:
    """A layer without values: a fresh one would draw them from torch's global generator."""
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs, bias=bias)  # type: ignore[no-untyped-call]
    return layer


def orthonormal(hidden: int, rank: int, seed: int) -> Basis:
    """r orthonormal directions that know nothing."""
    return random_basis(hidden, rank, seed)


def principal(rows: Tensor, rank: int) -> Basis:
    """The r principal directions of rows [M, d]."""
    wide = rows.detach().double().cpu()
    mean = wide.mean(0)
    centered = wide - mean
    return pca_basis(mean, centered.T @ centered / max(1, len(wide)), rank)
