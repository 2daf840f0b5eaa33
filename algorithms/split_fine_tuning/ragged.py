"""Conversion between padded batches and rows of real tokens, so that padding is not sent."""

from __future__ import annotations

import torch
from torch import Tensor


def mask_of(lengths: Tensor, width: int | None = None) -> Tensor:
    """Return the attention mask [B, T] int64 of right-padded sentences; T is ``width``, or the longest length."""
    size = int(lengths.max()) if width is None else width
    return (torch.arange(size)[None, :] < lengths[:, None]).long()


def flatten(padded: Tensor, mask: Tensor) -> Tensor:
    """Map [B, T, w] to [M, w]: the rows of real tokens, sentence after sentence. Differentiable."""
    return padded[mask.bool()]


def unflatten(rows: Tensor, mask: Tensor) -> Tensor:
    """Map [M, w] to [B, T, w] with zeros at padding. Differentiable."""
    padded = rows.new_zeros(*mask.shape, rows.shape[-1])
    return padded.masked_scatter(mask.bool()[..., None].expand_as(padded), rows)
