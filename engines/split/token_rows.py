"""Conversion between padded batches and the rows that are sent: real tokens only, or all positions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...core.errors import WireError
from ...core.message import Array, Message
from ...core.message import Tensor as WireTensor
from ...wire.encodings import Bits
from .wire_codec import small_integers

#: Largest number of positions in a batch, padding included.
_MAX_POSITIONS = 1 << 24


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Layout of the rows [M, w] of a message within a batch [B, T, w].

    Attributes
    ----------
    mask : Tensor [B, T]
        int64, on the CPU; 1 at tokens, 0 at padding.
    ragged : bool
        Whether the rows leave out padding.
    """

    mask: Tensor
    ragged: bool

    @classmethod
    def of_lengths(cls, lengths: Array, ragged: bool, tokens: int | None = None) -> TokenRows:
        """Return the layout of right-padded sentences; T is ``tokens``, or the longest length."""
        columns = torch.arange(int(lengths.max()) if tokens is None else tokens)
        return cls((columns < torch.from_numpy(lengths)[:, None]).long(), ragged)

    @classmethod
    def of_message(cls, message: Message, tokens: int, ragged: bool, peer: str) -> TokenRows:
        """Read the layout of a batch of width ``tokens`` from a message with :meth:`mask_tensors`.

        Raises
        ------
        WireError
            The mask or the lengths are missing or not those of a batch, or the batch is too large.
        """
        if "mask" in message.tensors:
            bits = message.array("mask")
            if bits.ndim != 2 or bits.shape[1] != tokens or not bits.size or bits.dtype.kind not in "iu":
                raise WireError(f"{peer}: the mask has shape {bits.shape}, expected integers [batch, {tokens}]")
            return cls(torch.from_numpy((bits != 0).astype(np.int64)), ragged)
        lengths = message.tensors["lengths"].array if "lengths" in message.tensors else np.empty(0, np.int64)
        sentences = len(lengths) if lengths.ndim == 1 and lengths.dtype.kind in "iu" else 0
        if not sentences or not 0 < tokens <= _MAX_POSITIONS // sentences:
            raise WireError(
                f"{peer}: invalid batch: lengths of shape {lengths.shape} with {tokens} tokens per sentence"
            )
        lengths = lengths.astype(np.int64)
        if lengths.min() < 0 or lengths.max() > tokens:
            raise WireError(f"{peer}: lengths from {lengths.min()} to {lengths.max()} in a batch of width {tokens}")
        return cls.of_lengths(lengths, ragged, tokens)

    @property
    def count(self) -> int:
        """Number of rows M."""
        return int(self.mask.sum()) if self.ragged else self.mask.numel()

    @property
    def per_sentence(self) -> Array:
        """Rows of each sentence, int64 [B]."""
        if self.ragged:
            return self.mask.sum(1).numpy()
        return np.full(len(self.mask), self.mask.shape[1])

    def gather(self, batch: Tensor) -> Tensor:
        """Map [B, T, w] to [M, w], sentence after sentence. Differentiable."""
        return batch[self.mask.to(batch.device) != 0] if self.ragged else batch.flatten(0, 1)

    def scatter(self, rows: Tensor) -> Tensor:
        """Map [M, w] to [B, T, w]; padding that was not sent becomes zero. Differentiable."""
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
