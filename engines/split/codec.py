"""Linear codec of a remote segment: r numbers per token instead of d cross each boundary.

An encoder starts as r orthonormal directions and the decoder as their transpose. With ``start="pca"`` the first batch
then replaces both by the principal directions of the hidden states at that boundary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .factors import Basis, pca_basis, random_basis


class LinearCodec(nn.Module):
    """Encoder (d → r) of what one side sends, and decoder (r → d) of what it receives.

    Parameters
    ----------
    hidden, rank : int
        Width d of the hidden states and r of the codes.
    """

    def __init__(self, hidden: int, rank: int) -> None:
        super().__init__()
        self.encode = _empty(hidden, rank, bias=False)
        self.decode = _empty(rank, hidden)
        nn.init.zeros_(self.encode.weight)
        nn.init.zeros_(self.decode.weight)
        nn.init.zeros_(self.decode.bias)

    @torch.no_grad()
    def init_encoder(self, basis: Basis) -> None:
        """Set the encoder to S·V of ``basis``."""
        self.encode.weight.copy_(basis.s @ basis.v)

    @torch.no_grad()
    def init_decoder(self, matrix: Tensor, offset: Tensor) -> None:
        """Set the decoder to R [d, r] and c [d]."""
        self.decode.weight.copy_(matrix)
        self.decode.bias.copy_(offset)


def _empty(inputs: int, outputs: int, *, bias: bool = True) -> nn.Linear:
    """Create a layer with uninitialized values, without drawing from torch's global generator."""
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs, bias=bias)  # type: ignore[no-untyped-call]
    return layer


def orthonormal_basis(hidden: int, rank: int, seed: int) -> Basis:
    """Return r random orthonormal directions."""
    return random_basis(hidden, rank, seed)


def principal_basis(rows: Tensor, rank: int) -> Basis:
    """Return the r principal directions of ``rows`` [M, d] and their mean."""
    wide = rows.detach().double().cpu()
    mean = wide.mean(0)
    centered = wide - mean
    return pca_basis(mean, centered.T @ centered / max(1, len(wide)), rank)
