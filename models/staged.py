"""Base of the image classifiers: stages, a neck and a linear head; returns logits and features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

Norm = Literal["batch", "group"]


class StagedNet(nn.Module):
    """An image classifier that returns logits and features.

    Parameters
    ----------
    stages : sequence of modules
        Applied in order, each from maps to maps [B, c, H, W]; the first is ``layer1``.
    neck : nn.Module
        From the last maps to features [B, width].
    width : int
        Elements of a feature, d.
    outputs : int
        Logits of the head.

    Attributes
    ----------
    linear : nn.Linear
        The head.
    feature_layer : int
        Which features are returned. 0: the input of the head. k > 0: the maps of stage k after global average pooling.
    """

    def __init__(self, stages: Sequence[nn.Module], neck: nn.Module, width: int, outputs: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.neck = neck
        self.linear = nn.Linear(width, outputs)
        self.feature_layer = 0

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, outputs] and features [B, d] of images [B, channels, H, W]."""
        stage_features = None
        for number, stage in enumerate(self.stages, start=1):
            x = stage(x)
            if number == self.feature_layer:
                stage_features = x.mean(dim=(2, 3))
        features = self.neck(x)
        return self.linear(features), features if stage_features is None else stage_features


class GlobalPool(nn.Module):
    """Mean over height and width: [B, c, H, W] → [B, c]."""

    def forward(self, x: Tensor) -> Tensor:
        """Average each map over its pixels."""
        return x.mean(dim=(2, 3))


def make_norm(kind: Norm, channels: int) -> nn.Module:
    """A batch norm, or a group norm with groups of at least 4 channels (at most 32 groups)."""
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    max_groups = min(32, max(1, channels // 4))
    return nn.GroupNorm(next(g for g in range(max_groups, 0, -1) if channels % g == 0), channels)


def conv_norm(inputs: int, outputs: int, kernel: int, stride: int, norm: Norm) -> nn.Sequential:
    """A convolution without bias, padded to keep height and width (divided by the stride), and a norm."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, make_norm(norm, outputs))
