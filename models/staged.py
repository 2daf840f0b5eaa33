"""A classifier of images that shows its features: stages, a neck and a head called ``linear``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

Norm = Literal["batch", "group"]


class StagedNet(nn.Module):
    """Stages one after the other, a neck that makes a vector of the last maps, and a linear head.

    Parameters
    ----------
    stages : sequence of modules
        Maps to maps, [B, c, H, W]; ``layer1`` is the first.
    neck : nn.Module
        The last maps to features [B, width].
    width : int
        d, what the head reads.
    outputs : int
        Classes.

    Attributes
    ----------
    feature_layer : int
        0: show what the head reads. k > 0: show the maps of stage k, pooled, to the loss that aligns features.
    """

    def __init__(self, stages: Sequence[nn.Module], neck: nn.Module, width: int, outputs: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.neck = neck
        self.linear = nn.Linear(width, outputs)
        self.feature_layer = 0

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, outputs] and features [B, d] of images [B, channels, H, W]."""
        shown = None
        for number, stage in enumerate(self.stages, start=1):
            x = stage(x)
            if number == self.feature_layer:
                shown = x.mean(dim=(2, 3))
        features = self.neck(x)
        return self.linear(features), features if shown is None else shown


class GlobalPool(nn.Module):
    """Mean over height and width: [B, c, H, W] → [B, c]."""

    def forward(self, x: Tensor) -> Tensor:
        """The mean of each map."""
        return x.mean(dim=(2, 3))


def norm_of(kind: Norm, channels: int) -> nn.Module:
    """A norm for ``channels`` maps: over the batch, or over groups of at least 4 maps (at most 32 groups)."""
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    most = min(32, max(1, channels // 4))
    return nn.GroupNorm(next(g for g in range(most, 0, -1) if channels % g == 0), channels)


def conv_norm(inputs: int, outputs: int, kernel: int, stride: int, norm: Norm) -> nn.Sequential:
    """A convolution without bias that keeps the size up to its stride, and a norm."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, norm_of(norm, outputs))
