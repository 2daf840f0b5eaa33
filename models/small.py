"""Small image classifiers for training on a CPU: a three-layer convolutional net and a LeNet."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from .staged import GlobalPool, Norm, StagedNet, conv_norm


def conv3(outputs: int, channels: int = 3, norm: Norm = "batch", widths: Sequence[int] = (16, 32, 64)) -> StagedNet:
    """One 3x3 convolution without bias, norm and ReLU per width; strides 1, 2, 2 …, then global average pooling.

    The feature has ``widths[-1]`` elements. The digits runs of ``docs/methods/vhl.md``, section 12, use this model.
    """
    stages = [
        nn.Sequential(conv_norm(before, width, 3, 2 if i else 1, norm), nn.ReLU())
        for i, (before, width) in enumerate(pairwise((channels, *widths)))
    ]
    return StagedNet(stages, GlobalPool(), widths[-1], outputs)


def lenet(outputs: int, channels: int = 3, size: int = 32) -> StagedNet:
    """Two 5x5 convolutions of 6 and 16 maps, each with 2x2 max-pooling, and layers of 120 and 84 units; no norms.

    ``size`` is the height and width of the images, at least 16. Source: NIID-Bench, arXiv 2102.02079 (after LeNet-5).
    """
    side = ((size - 4) // 2 - 4) // 2
    stages = [
        nn.Sequential(nn.Conv2d(before, after, 5), nn.ReLU(), nn.MaxPool2d(2))
        for before, after in ((channels, 6), (6, 16))
    ]
    neck = nn.Sequential(nn.Flatten(), nn.Linear(16 * side**2, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU())
    return StagedNet(stages, neck, 84, outputs)
