"""Classification head (pooling, dropout, linear layer), and the unsplit classifier."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...core.errors import ConfigError
from ...engines.split.architectures import architecture_of
from .backbone import Origin, origin_of

Pooling = Literal["auto", "mean", "pooler", "last"]


class Head(nn.Module):
    """Pooling, dropout and a linear layer.

    Parameters
    ----------
    width : int
        Hidden width d.
    classes : int
        Number of classes C.
    pooling : {"mean", "pooler", "last"}
        Masked mean over tokens; the backbone's own pooler; or the last token before padding.
    dropout : float
        Rate before the linear layer.
    seed : int
        Seed of the linear layer's weights (normal, standard deviation 0.02; the bias is zero).
    """

    def __init__(self, width: int, classes: int, pooling: Pooling, *, dropout: float = 0.1, seed: int = 0) -> None:
        super().__init__()
        self.pooling = pooling
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(width, classes)
        if not self.linear.weight.is_meta:
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                self.linear.weight.copy_(torch.randn(classes, width, generator=generator) * 0.02)
                self.linear.bias.zero_()

    def forward(self, hidden: Tensor, pooled: Tensor | None, attention_mask: Tensor) -> Tensor:
        """Return logits [B, C] of hidden states [B, T, d], the pooler's output [B, d] or None, and the mask [B, T]."""
        if self.pooling == "mean":
            vector = masked_mean(hidden, attention_mask)
        elif self.pooling == "last":
            positions = torch.arange(hidden.shape[1], device=hidden.device)
            last = (attention_mask.bool() * positions).argmax(dim=1)  # works for padding on either side
            vector = hidden[torch.arange(len(hidden), device=hidden.device), last]
        else:
            if pooled is None:
                raise ConfigError("head=pooler, but the model has no pooler", hint="set head=mean")
            vector = pooled
        logits: Tensor = self.linear(self.dropout(vector))
        return logits


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of ``x`` [B, T, d] over the tokens where ``mask`` [B, T] is set, as [B, d].

    Values at padding, even NaN, do not affect the result and get a gradient of exactly zero.
    """
    keep = mask.bool().unsqueeze(-1)
    total = torch.where(keep, x, x.new_zeros(())).sum(dim=1)
    return total / keep.sum(dim=1).clamp(min=1)


class Classifier(nn.Module):
    """The unsplit model: backbone and head.

    Parameters
    ----------
    backbone : PreTrainedModel
        From :func:`~.backbone.load_backbone`, or any model of a supported type. Its pooler is removed unless
        ``head="pooler"``: unused parameters would still be counted and sent.
    classes : int
        Number of classes.
    head : {"auto", "mean", "pooler", "last"}
        See :class:`Head`; ``auto`` is ``mean`` for encoders and ``last`` for GPT-2.
    dropout, seed
        Passed to the head.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        classes: int,
        *,
        head: Pooling = "auto",
        dropout: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.architecture = architecture_of(backbone.config)
        self.origin: Origin = origin_of(backbone)
        if head == "auto":
            head = "last" if self.architecture.pre_norm else "mean"
        has_pooler = getattr(backbone, "pooler", None) is not None
        if head == "pooler" and not has_pooler:
            raise ConfigError(f"a {self.architecture.name} backbone has no pooler", hint="set head=mean")
        if head != "pooler" and has_pooler:
            cast(Any, backbone).pooler = None
        backbone.config.use_cache = False
        self.backbone = backbone
        # A new layer draws from torch's global generator before it is initialized: restore its state.
        with (
            torch.random.fork_rng(devices=[]),
            torch.device("meta" if backbone.device.type == "meta" else "cpu"),
        ):
            self.head = Head(backbone.config.hidden_size, classes, head, dropout=dropout, seed=seed)
        self.train(backbone.training)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Return logits [B, C] of token ids, mask and, for sentence pairs, token types, each [B, T] int64."""
        types = {"token_type_ids": token_type_ids} if self.architecture.token_types else {}
        out = self.backbone(input_ids=input_ids, attention_mask=attention_mask, **types)
        logits: Tensor = self.head(out.last_hidden_state, getattr(out, "pooler_output", None), attention_mask)
        return logits
