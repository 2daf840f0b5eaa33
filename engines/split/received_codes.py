"""Codes that a message brings to a part of a model, and their gradients for the reply."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ...core.message import Message
from .token_rows import TokenRows
from .wire_codec import read_floats


@dataclass(frozen=True, slots=True)
class ReceivedCodes:
    """The codes of a micro-batch as a leaf of the receiver's autograd graph.

    Attributes
    ----------
    rows : TokenRows
    codes : Tensor [M, w]
        float32, on the receiver's device.
    """

    rows: TokenRows
    codes: Tensor

    @classmethod
    def of(cls, message: Message, rows: TokenRows, width: int, device: torch.device, peer: str) -> Self:
        """Read ``codes`` [M, width] of a message.

        Raises
        ------
        WireError
            They are missing, or have another shape or dtype.
        """
        return cls(rows, read_floats(message, "codes", (rows.count, width), peer).to(device))

    @property
    def mask(self) -> Tensor:
        """The mask [B, T] on the receiver's device."""
        return self.rows.mask.to(self.codes.device)

    def padded(self) -> Tensor:
        """Return the codes as [B, T, w]; differentiable."""
        return self.rows.scatter(self.codes)
