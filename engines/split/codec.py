"""Linear codec of a remote segment: r numbers per token instead of d cross each boundary.

An encoder starts as r orthonormal directions and the decoder as their transpose. With ``start="pca"`` the first batch
then replaces both by the principal directions of the hidden states at that boundary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .factors import Basis


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

    def init_encoder(self, basis: Basis) -> None:
        """Set the encoder to S·V of ``basis``."""
        set_values(self.encode.weight, basis.s @ basis.v)

    def init_decoder(self, matrix: Tensor, offset: Tensor) -> None:
        """Set the decoder to R [d, r] and c [d]."""
        set_values(self.decode.weight, matrix)
        set_values(self.decode.bias, offset)


@torch.no_grad()
def set_values(parameter: Tensor, value: Tensor) -> None:
    """Copy a value of any dtype and device into a parameter or buffer of the same shape."""
    # Converted before it is moved: not every device has float64.
    parameter.copy_(value.to(parameter.dtype))


def _empty(inputs: int, outputs: int, *, bias: bool = True) -> nn.Linear:
    """Create a layer with uninitialized values, without drawing from torch's global generator."""
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs, bias=bias)  # type: ignore[no-untyped-call]
    return layer
