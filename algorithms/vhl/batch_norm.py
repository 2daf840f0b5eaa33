"""Forward passes over natural and virtual images with mixed or separate batch norm statistics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

Mode = Literal["mixed", "split"]


def forward_both(model: nn.Module, x: Tensor, x_v: Tensor, mode: Mode = "mixed") -> tuple[Tensor, Tensor]:
    """Run ``model`` on natural and virtual images.

    Parameters
    ----------
    model : nn.Module
        Returns logits and features.
    x : Tensor [B, channels, H, W]
        Natural images.
    x_v : Tensor [B_v, channels, H, W]
        Virtual images.
    mode : {"mixed", "split"}
        ``mixed``: one pass over the concatenated batch, which batch norms normalize as a whole and add to their running
        statistics. ``split``: one pass for each half, normalized by its own statistics; running statistics are updated
        by the natural half only. Without batch norms the two modes are equal.

    Returns
    -------
    logits : Tensor [B + B_v, outputs]
        Natural images first.
    features : Tensor [B + B_v, d]

    Notes
    -----
    See ``docs/methods/vhl.md``, section 4.
    """
    if mode == "mixed":
        logits, features = model(torch.cat([x, x_v]))
        return logits, features
    logits, features = model(x)
    with frozen_statistics(model):
        logits_v, features_v = model(x_v)
    return torch.cat([logits, logits_v]), torch.cat([features, features_v])


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Keep the running statistics and batch counters of ``model``'s batch norms unchanged within the context."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)]
    tracked = [m for m in norms if m.track_running_stats]
    for norm in tracked:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in tracked:
            norm.track_running_stats = True
