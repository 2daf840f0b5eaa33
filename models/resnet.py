"""Residual networks for small images: a 3x3 stem of stride 1 and no max-pool."""

from __future__ import annotations

from torch import Tensor, nn

from .staged import GlobalPool, Norm, StagedNet, conv_norm

#: Blocks of each stage, and whether they are bottlenecks.
DEPTHS: dict[int, tuple[tuple[int, int, int, int], bool]] = {
    10: ((1, 1, 1, 1), False),
    18: ((2, 2, 2, 2), False),
    50: ((3, 4, 6, 3), True),
}


class ResidualBlock(nn.Module):
    """ReLU(body(x) + shortcut(x)); the shortcut is a 1x1 projection if the shapes differ.

    The body is two 3x3 convolutions, or with ``bottleneck`` 1x1, 3x3 and 1x1 convolutions, the last four times as wide.
    The (first) 3x3 convolution has the stride.
    """

    def __init__(self, inputs: int, width: int, stride: int, norm: Norm, *, bottleneck: bool) -> None:
        super().__init__()
        outputs = 4 * width if bottleneck else width
        if bottleneck:
            first, second = conv_norm(inputs, width, 1, 1, norm), conv_norm(width, width, 3, stride, norm)
            self.body = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), conv_norm(width, outputs, 1, 1, norm))
        else:
            first, second = conv_norm(inputs, width, 3, stride, norm), conv_norm(width, width, 3, 1, norm)
            self.body = nn.Sequential(first, nn.ReLU(), second)
        same_shape = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same_shape else conv_norm(inputs, outputs, 1, stride, norm)
        self.outputs = outputs

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] → [B, outputs, H/stride, W/stride]."""
        total: Tensor = self.body(x) + self.shortcut(x)
        return total.relu()


def resnet(depth: int, outputs: int, channels: int = 3, norm: Norm = "batch") -> StagedNet:
    """ResNet-10, -18 or -50 for small images, as VHL's official code has them (``docs/methods/vhl.md``, section 8).

    Stages of 64, 128, 256 and 512 channels (four times as many in ResNet-50) with strides 1, 2, 2, 2; the feature has
    512 or 2,048 elements. Initial weights come from PyTorch's global generator; :func:`~.image_classifiers.build` seeds
    them. Source: He et al., arXiv 1512.03385.
    """
    counts, bottleneck = DEPTHS[depth]
    stages: list[nn.Module] = []
    before = 64
    for i, count in enumerate(counts):
        blocks: list[nn.Module] = [conv_norm(channels, 64, 3, 1, norm), nn.ReLU()] if i == 0 else []
        for j in range(count):
            block = ResidualBlock(before, 64 << i, 2 if i and not j else 1, norm, bottleneck=bottleneck)
            blocks.append(block)
            before = block.outputs
        stages.append(nn.Sequential(*blocks))
    return StagedNet(stages, GlobalPool(), before, outputs)
