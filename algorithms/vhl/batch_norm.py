"""Natural and virtual images through one model: in one batch, or with statistics of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

Mode = Literal["mixed", "split"]


def forward_both(model: nn.Module, x: Tensor, x_v: Tensor, mode: Mode = "mixed") -> tuple[Tensor, Tensor]:
    """Logits [B + B_v, outputs] and features [B + B_v, d] of both halves, the natural one first.

    Parameters
    ----------
    model : nn.Module
        Returns logits and features.
    x : Tensor [B, channels, H, W]
        Natural images.
    x_v : Tensor [B_v, channels, H, W]
        Virtual images.
    mode : {"mixed", "split"}
        ``mixed``: one pass; batch norms normalize, and count, the mixture of both. ``split``: a pass for each half,
        normalized by its own statistics; running statistics follow the natural half only. Without batch norms both
        give the same.

    Notes
    -----
    Source: specification of VHL §3.2 (one pass), §11 (``bn: mixed|split``).
    """
    if mode == "mixed":
        logits, features = model(torch.cat([x, x_v]))
        return logits, features
    logits, features = model(x)
    with untracked(model):
        logits_v, features_v = model(x_v)
    return torch.cat([logits, logits_v]), torch.cat([features, features_v])


@contextmanager
def untracked(model: nn.Module) -> Iterator[None]:
    """Training passes inside leave the running statistics of ``model``'s batch norms, and their counters, alone."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)]
    tracking = [m for m in norms if m.track_running_stats]
    for norm in tracking:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in tracking:
            norm.track_running_stats = True
