"""Running mean and deviation of each code channel: a quantizer's step, the same for one sentence and for a
batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class CodeStatistics(nn.Module):
    """Exponential averages over batches, kept as buffers so that checkpoints hold them.

    Parameters
    ----------
    width : int
        Number of channels w.
    momentum : float
        Weight of the past per update; the first update takes the batch's own values.
    """

    mean: Tensor
    variance: Tensor
    updates: Tensor

    def __init__(self, width: int, momentum: float = 0.95) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @property
    def deviation(self) -> Tensor:
        """Standard deviation per channel, [w], never zero."""
        return self.variance.clamp(min=1e-12).sqrt()

    @torch.no_grad()
    def update(self, z: Tensor, mask: Tensor) -> None:
        """Take a training batch's codes ``z`` [B, T, w] into account, where ``mask`` [B, T] is set.

        Call it once per micro-batch, in training only: an evaluation must not depend on its neighbors.
        """
        tokens = z.detach()[mask.bool()].float()  # [M, w]
        if len(tokens) == 0:
            return
        mean, variance = tokens.mean(dim=0), tokens.var(dim=0, unbiased=False)
        if int(self.updates) == 0:
            self.set(mean, variance)
            return
        fresh = 1.0 - self.momentum
        shift = mean - self.mean
        # The variance of a mixture: both variances, and what the means lie apart.
        self.variance.mul_(self.momentum).add_(fresh * (variance + self.momentum * shift**2))
        self.mean.add_(fresh * shift)
        self.updates.add_(1)

    @torch.no_grad()
    def set(self, mean: Tensor, variance: Tensor) -> None:
        """Start from known moments, each [w], say from a calibration."""
        self.mean.copy_(mean)
        self.variance.copy_(variance)
        self.updates.fill_(1)
