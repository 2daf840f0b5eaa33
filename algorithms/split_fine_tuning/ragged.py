"""Padded batches to runs of real tokens and back: padding never travels."""

from __future__ import annotations

import torch
from torch import Tensor


def mask_of(lengths: Tensor, width: int | None = None) -> Tensor:
    """Attention mask ``[B, T]`` int64 of right-padded sentences; ``T`` is the longest length unless given."""
    size = int(lengths.max()) if width is None else width
    return (torch.arange(size)[None, :] < lengths[:, None]).long()


def flatten(padded: Tensor, mask: Tensor) -> Tensor:
    """``[B, T, w]`` to ``[M, w]``: the rows of real tokens, sentence after sentence; differentiable."""
    return padded[mask.bool()]


def unflatten(rows: Tensor, mask: Tensor) -> Tensor:
    """``[M, w]`` to ``[B, T, w]`` with zeros at padding; differentiable."""
    padded = rows.new_zeros(*mask.shape, rows.shape[-1])
    return padded.masked_scatter(mask.bool()[..., None].expand_as(padded), rows)
