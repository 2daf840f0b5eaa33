"""Running mean and standard deviation of each code channel, which set the quantization steps."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class CodeStatistics(nn.Module):
    """Exponential moving averages over batches, as buffers so that checkpoints include them.

    Parameters
    ----------
    width : int
        Number of channels w.
    momentum : float
        Weight of the previous value in an update; the first update takes the batch's values.
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
        """Standard deviation per channel, [w]; never zero."""
        return self.variance.clamp(min=1e-12).sqrt()

    @torch.no_grad()
    def update(self, z: Tensor, mask: Tensor) -> None:
        """Update the averages with the codes ``z`` [B, T, w] of a training batch, where ``mask`` [B, T] is set.

        Call it once per micro-batch and only in training, so that the encoding of an evaluation example does not depend
        on other examples.
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
        # Variance of a mixture: the mean of both variances, plus the variance of the means.
        self.variance.mul_(self.momentum).add_(fresh * (variance + self.momentum * shift**2))
        self.mean.add_(fresh * shift)
        self.updates.add_(1)

    @torch.no_grad()
    def set(self, mean: Tensor, variance: Tensor) -> None:
        """Set the moments, each [w], for example from a calibration."""
        self.mean.copy_(mean)
        self.variance.copy_(variance)
        self.updates.fill_(1)
