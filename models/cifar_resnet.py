"""ResNets for 32 x 32 images with parameter-free shortcuts (He et al., arXiv 1512.03385, section 4.2)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class _Block(nn.Module):
    """Two 3 x 3 convolutions and a parameter-free shortcut (option A of arXiv 1512.03385)."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.stride, self.added_channels = stride, out - width

    def forward(self, x: Tensor) -> Tensor:
        """(N, width, H, W) to (N, out, H / stride, W / stride)."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        if added := self.added_channels:
            shortcut = functional.pad(shortcut, (0, 0, 0, 0, added // 2, added - added // 2))
        return functional.relu(y + shortcut)


class CifarResNet(nn.Module):
    """ResNet for 32 x 32 images: three stages of (depth - 2) / 6 blocks with 16, 32 and 64 channels.

    Parameters
    ----------
    depth : int
        Layers, 6n + 2: 20, 32, 44, 56, 110 …
    classes : int
        Outputs.
    channels : int
        Channels of the images.

    Raises
    ------
    ValueError
        ``depth`` is not 6n + 2.
    """

    def __init__(self, depth: int = 20, classes: int = 10, channels: int = 3) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"the depth of a CIFAR ResNet must be 6n + 2, not {depth}")
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        width = 16
        stages = []
        for out in (16, 32, 64):
            stage = []
            for index in range(blocks):
                stage.append(_Block(width, out, 2 if index == 0 and out > 16 else 1))
                width = out
            stages.append(nn.Sequential(*stage))
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) to logits (N, classes)."""
        x = self.stages(functional.relu(self.bn1(self.conv1(x))))
        logits: Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits
