"""Conversion between padded batches and the rows that are sent: real tokens only, or all positions."""

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

#: Largest number of positions in a batch, padding included.
_MAX_POSITIONS = 1 << 24


@dataclass(frozen=True)
class Rows:
    """Layout of the rows [M, w] of a message within a batch [B, T, w].

    Attributes
    ----------
    mask : Tensor [B, T]
        int64; 1 at tokens, 0 at padding.
    ragged : bool
        Whether the rows leave out padding.
    """

    mask: Tensor
    ragged: bool

    @property
    def groups(self) -> Array | None:
        """Rows per sentence, the groups that share a scale in gradient encodings; None for one group."""
        return self.mask.sum(1).numpy() if self.ragged else None

    def gather(self, batch: Tensor) -> Tensor:
        """Map [B, T, w] to [M, w]."""
        return batch[self.mask.to(batch.device) != 0] if self.ragged else batch.flatten(0, 1)

    def scatter(self, rows: Tensor) -> Tensor:
        """Map [M, w] to [B, T, w]; padding that was not sent becomes zero."""
        if not self.ragged:
            return rows.reshape(*self.mask.shape, rows.shape[-1])
        out = rows.new_zeros((*self.mask.shape, rows.shape[-1]))
        return out.masked_scatter(self.mask.to(rows.device)[..., None] != 0, rows)

    def mask_tensors(self) -> dict[str, WireTensor]:
        """Return the mask as wire tensors: lengths if all padding is on the right, otherwise one bit per position."""
        tokens = self.mask.shape[1]
        lengths = self.mask.sum(1)
        if torch.equal(self.mask, (torch.arange(tokens) < lengths[:, None]).long()):
            return {"lengths": small_integers(lengths.numpy().astype(np.uint32), tokens)}
        return {"mask": WireTensor(self.mask.numpy().astype(np.uint8), Bits(1))}

    @classmethod
    def of(cls, message: Message, tokens: int, ragged: bool) -> Rows:
        """Read the mask from a message with :meth:`mask_tensors`.

        Raises
        ------
        WireError
            The mask or the lengths are not those of a batch, or the batch is too large.
        """
        if "mask" in message.tensors:
            bits = message.array("mask")
            if bits.ndim != 2 or bits.shape[1] != tokens or not bits.size:
                raise WireError(f"the mask has shape {bits.shape}, expected [batch, {tokens}]")
            return cls(torch.from_numpy(bits.astype(np.int64)), ragged)
        lengths = message.array("lengths").astype(np.int64)
        if lengths.ndim != 1 or not len(lengths) or not 0 < tokens <= _MAX_POSITIONS // len(lengths):
            raise WireError(f"invalid batch: lengths of shape {lengths.shape} with {tokens} tokens per sentence")
        if lengths.min() < 0 or lengths.max() > tokens:
            raise WireError(f"lengths from {lengths.min()} to {lengths.max()} in a batch of width {tokens}")
        return cls((torch.arange(tokens) < torch.from_numpy(lengths)[:, None]).long(), ragged)

    def read(self, message: Message, name: str, width: int) -> Tensor:
        """Copy the tensor ``name`` of a message, [M, width] float32.

        Raises
        ------
        WireError
            It has another shape or dtype.
        """
        array = message.array(name)
        shape = (int(self.mask.sum()) if self.ragged else self.mask.numel(), width)
        if array.shape != shape or array.dtype != np.float32:
            raise WireError(f"'{name}' is {array.dtype} of shape {array.shape}, expected float32 of shape {shape}")
        return torch.from_numpy(np.array(array))


def activation_tensor(rows: Tensor, encoding: str) -> WireTensor:
    """Encode codes [M, w]: round to nearest, with one scale per channel for integer encodings."""
    encodings: dict[str, Encoding | None] = {
        "raw": None,
        "fp16": Fp16(),
        "int8": Int8(rounding="nearest"),
        "int4": Int4(rounding="nearest"),
    }
    return WireTensor(_array(rows), encodings[encoding])


def gradient_rows(rows: Tensor, encoding: str, groups: Array | None, seed: Seed) -> WireTensor:
    """Encode gradients [M, w]: round stochastically, with scales per channel and per sentence."""
    return gradient_tensor(_array(rows), encoding, groups, seed)


def _array(rows: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.ascontiguousarray(rows.detach().float().cpu().numpy())
