"""Splits a client's samples into batches."""

from __future__ import annotations

import torch
from torch import Tensor


def split_batches(order: Tensor, size: int, *, allow_single: bool) -> list[Tensor]:
    """Split indices into batches of ``size``; no indices make no batch.

    A last batch of one sample is merged into the previous batch unless ``allow_single``, because batch norm cannot
    normalize a single sample.
    """
    if not len(order):
        return []
    batches = list(torch.split(order, size))
    if len(batches) > 1 and len(batches[-1]) == 1 and not allow_single:
        last = batches.pop()
        batches[-1] = torch.cat([batches[-1], last])
    return batches
