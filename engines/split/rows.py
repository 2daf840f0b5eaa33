"""What of a batch travels: one row per token, or every position where padding must come out equal too."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...core.errors import WireError
from ...core.message import Array, Encoding, Message
from ...core.message import Tensor as WireTensor
from ...core.seeds import Seed
from ...wire.encodings import Bits, Fp16, Int4, Int8
from .wire_codec import gradient_tensor, small_integers

#: Most positions that one batch may have, padding included.
_MOST_POSITIONS = 1 << 24


@dataclass(frozen=True)
class Rows:
    """How the rows [M, w] of a message stand in a batch [B, T, w].

    Attributes
    ----------
    mask : Tensor [B, T]
        int64; 1 at tokens, 0 at padding.
    ragged : bool
        Whether padding is left out of the rows.
    """

    mask: Tensor
    ragged: bool

    @property
    def groups(self) -> Array | None:
        """Rows of each sentence that share a scale, as the gradient's encodings take them."""
        return self.mask.sum(1).numpy() if self.ragged else None

    def pick(self, batch: Tensor) -> Tensor:
        """[B, T, w] to [M, w]."""
        return batch[self.mask.to(batch.device) != 0] if self.ragged else batch.flatten(0, 1)

    def place(self, rows: Tensor) -> Tensor:
        """[M, w] to [B, T, w]; padding is zero where it did not travel."""
        if not self.ragged:
            return rows.reshape(*self.mask.shape, rows.shape[-1])
        out = rows.new_zeros((*self.mask.shape, rows.shape[-1]))
        return out.masked_scatter(self.mask.to(rows.device)[..., None] != 0, rows)

    def describe(self) -> dict[str, WireTensor]:
        """The mask as tensors: lengths where all padding is on the right, else one bit per position."""
        tokens = self.mask.shape[1]
        lengths = self.mask.sum(1)
        if torch.equal(self.mask, (torch.arange(tokens) < lengths[:, None]).long()):
            return {"lengths": small_integers(lengths.numpy().astype(np.uint32), tokens)}
        return {"mask": WireTensor(self.mask.numpy().astype(np.uint8), Bits(1))}

    @classmethod
    def of(cls, message: Message, tokens: int, ragged: bool) -> Rows:
        """Read :meth:`describe`'s tensors.

        Raises
        ------
        WireError
            They do not describe a batch, or one beyond the limit.
        """
        if "mask" in message.tensors:
            bits = message.array("mask")
            if bits.ndim != 2 or bits.shape[1] != tokens or not bits.size:
                raise WireError(f"a mask of shape {bits.shape} where [batch, {tokens}] is due")
            return cls(torch.from_numpy(bits.astype(np.int64)), ragged)
        lengths = message.array("lengths").astype(np.int64)
        if lengths.ndim != 1 or not len(lengths) or not 0 < tokens <= _MOST_POSITIONS // len(lengths):
            raise WireError(f"lengths of shape {lengths.shape} and {tokens} tokens make no batch")
        if lengths.min() < 0 or lengths.max() > tokens:
            raise WireError(f"a sentence of {lengths.max()} tokens in a batch of {tokens}")
        return cls((torch.arange(tokens) < torch.from_numpy(lengths)[:, None]).long(), ragged)

    def read(self, message: Message, name: str, width: int) -> Tensor:
        """The rows called ``name``, [M, width] float32, as a tensor of its own.

        Raises
        ------
        WireError
            They have another shape.
        """
        array = message.array(name)
        wanted = (int(self.mask.sum()) if self.ragged else self.mask.numel(), width)
        if array.shape != wanted or array.dtype != np.float32:
            raise WireError(f"'{name}' is {array.dtype} of shape {array.shape} where float32 of {wanted} is due")
        return torch.from_numpy(np.array(array))


def activation_tensor(rows: Tensor, encoding: str) -> WireTensor:
    """Codes [M, w] on their way: rounded to nearest, one scale per channel where the encoding has scales."""
    ways: dict[str, Encoding | None] = {
        "raw": None,
        "fp16": Fp16(),
        "int8": Int8(rounding="nearest"),
        "int4": Int4(rounding="nearest"),
    }
    return WireTensor(_array(rows), ways[encoding])


def gradient_rows(rows: Tensor, encoding: str, groups: Array | None, seed: Seed) -> WireTensor:
    """Gradients [M, w] on their way: stochastically rounded, a scale per channel and sentence."""
    return gradient_tensor(_array(rows), encoding, groups, seed)


def _array(rows: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.ascontiguousarray(rows.detach().float().cpu().numpy())
