"""Recover the padding mask of a batch from the arguments that transformers passes to a block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...core.errors import ConfigError


def token_mask(hidden: Tensor, arguments: Sequence[Any], named: Mapping[str, Any]) -> Tensor:
    """Return the padding mask [B, T] int64 of hidden states [B, T, d] from a block's ``forward`` arguments.

    transformers passes an expanded mask [B, 1, T or 1, T] to its blocks, boolean or additive, or None if there is no
    padding. Apart from causality all queries see the same keys, so the last query's row is the padding mask.

    Raises
    ------
    ConfigError
        A key/value cache is in use, or the mask is more than a padding mask.
    """
    if named.get("use_cache"):
        raise ConfigError("a split model has no key/value cache", hint="pass use_cache=False")
    mask = named.get("attention_mask")
    if mask is None:
        mask = next((a for a in arguments if isinstance(a, Tensor)), None)
    size, tokens = hidden.shape[:2]
    if mask is None:
        return torch.ones(size, tokens, dtype=torch.int64)
    if mask.dim() == 2:
        return (mask != 0).long()
    allowed = mask if mask.dtype == torch.bool else mask == 0
    row = allowed[:, 0, -1, :]
    seen = row[:, None, :].expand(-1, allowed.shape[2], -1)
    causal = seen.tril()
    # Queries at padding may see nothing, or only themselves; their output is never used, so do not compare them.
    real = row[:, :, None] if allowed.shape[2] == tokens else torch.ones_like(row[:, :1, None])
    for possible in (seen, causal):
        if torch.equal(allowed[:, 0] & real, possible & real):
            return row.expand(size, -1).long()
    raise ConfigError(
        "the attention mask of this batch is more than a padding mask, and the server receives only padding",
        hint="pass an attention mask of shape [batch, tokens]",
    )
