"""Which positions of a batch are tokens, found in what the library hands to its blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...core.errors import ConfigError


def token_mask(hidden: Tensor, arguments: Sequence[Any], named: Mapping[str, Any]) -> Tensor:
    """The mask [B, T] int64 of hidden states [B, T, d], from the other arguments of a block's ``forward``.

    Libraries hand an expanded mask [B, 1, T or 1, T] to their blocks, boolean or added to the scores, or none where
    there is no padding. What a query may see of each key is the same for all queries but for causality, so the last
    query's row says which keys are tokens.

    Raises
    ------
    ConfigError
        Keys and values of earlier calls are used, or the mask is another one than of padding.
    """
    if named.get("use_cache"):
        raise ConfigError("a split model keeps no keys and values of earlier calls", hint="pass use_cache=False")
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
    # A query at padding may see nothing at all, or just itself: nobody looks at what comes of it.
    real = row[:, :, None] if allowed.shape[2] == tokens else torch.ones_like(row[:, :1, None])
    for possible in (seen, causal):
        if torch.equal(allowed[:, 0] & real, possible & real):
            return row.expand(size, -1).long()
    raise ConfigError(
        "the attention mask of this batch is more than padding, and only padding is known in the cloud",
        hint="pass a mask of shape [batch, tokens]",
    )
