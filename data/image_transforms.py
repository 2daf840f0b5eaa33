"""Images as the network takes them: the published crops, flips and scales of each data set, on whole batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ..core.errors import ConfigError

Choice = Literal["none", "official"]
Triple = tuple[float, ...]

#: Pixels of black around an image before it is cropped to its size again.
PAD = 4


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is done to a batch of images; source: specification of VHL §6.

    Attributes
    ----------
    mean, deviation : tuple of float
        Of each channel (or of all) in [0, 1]: the result is (x/255 - mean)/deviation.
    crop_flip : bool
        Crop to the images' own size after a margin of black, and mirror every other one.
    cutout : int
        Side of the square that is set to 0 after scaling; 0 = none. It may stick out (DeVries 2017).
    """

    mean: Triple = (0.5,)
    deviation: Triple = (0.25,)
    crop_flip: bool = False
    cutout: int = 0

    def __call__(self, images: Tensor, draw: torch.Generator | None = None) -> Tensor:
        """Floats of uint8 ``images`` [B, channels, H, W]; at random if there is a generator (on the CPU)."""
        if draw is not None and self.crop_flip:
            images = crop_and_flip(images, draw)
        mean, deviation = (torch.tensor(t).view(-1, 1, 1) for t in (self.mean, self.deviation))
        x = (images.float() / 255 - mean) / deviation
        return cut_out(x, self.cutout, draw) if draw is not None and self.cutout else x


#: Virtual images are scaled like this always, and natural ones by ``normalize: matched``.
MATCHED = Recipe()
_CIFAR100 = Recipe((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), crop_flip=True, cutout=16)
_PLAIN = Recipe((0.0,), (1.0,))
OFFICIAL = {
    "cifar10": Recipe((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), crop_flip=True),
    "cifar100": _CIFAR100,
    "fmnist": _PLAIN,
    "svhn": _PLAIN,
}


def recipes(dataset: str, normalize: Literal["matched", "official"], augment: Choice) -> tuple[Recipe, Recipe]:
    """What is done to natural and to virtual images in training.

    Raises
    ------
    ConfigError
        Nothing is published for this data set.
    """
    if normalize == "matched" and augment == "none":
        return MATCHED, MATCHED
    if dataset not in OFFICIAL:
        raise ConfigError(
            f"no official recipe is published for '{dataset}'",
            hint=f"use normalize=matched and augment=none, or one of {', '.join(OFFICIAL)}",
        )
    official, varied = OFFICIAL[dataset], augment == "official"
    scale = official if normalize == "official" else MATCHED
    natural = Recipe(scale.mean, scale.deviation, official.crop_flip and varied, official.cutout if varied else 0)
    return natural, Recipe(crop_flip=varied)


def resized(images: Tensor, size: int) -> Tensor:
    """uint8 images [N, channels, H, W] at ``size`` pixels a side, bilinear."""
    if images.shape[-1] == size:
        return images
    parts = [
        F.interpolate(part.float(), (size, size), mode="bilinear", align_corners=False, antialias=True)
        for part in torch.split(images, 4096)
    ]
    return torch.cat([part.round().clamp(0, 255).to(torch.uint8) for part in parts])


def crop_and_flip(images: Tensor, draw: torch.Generator) -> Tensor:
    """Each of ``images`` [B, channels, H, W] moved by up to :data:`PAD` pixels into black, half of them mirrored."""
    count, channels, height, width = images.shape
    padded = F.pad(images, (PAD, PAD, PAD, PAD))
    top, left = torch.randint(2 * PAD + 1, (2, count, 1), generator=draw)
    mirrored = torch.randint(2, (count, 1), generator=draw).bool()
    across = torch.arange(width)
    rows = top + torch.arange(height)
    columns = left + torch.where(mirrored, across.flip(0), across)
    picture, channel = torch.arange(count).view(-1, 1, 1, 1), torch.arange(channels).view(1, -1, 1, 1)
    return padded[picture, channel, rows[:, None, :, None], columns[:, None, None, :]]


def cut_out(x: Tensor, side: int, draw: torch.Generator) -> Tensor:
    """``x`` [B, channels, H, W] with a square of zeros around a random pixel of each image."""
    count, _, height, width = x.shape
    y0 = torch.randint(height, (count, 1), generator=draw) - side // 2
    x0 = torch.randint(width, (count, 1), generator=draw) - side // 2
    down, across = torch.arange(height), torch.arange(width)
    rows, columns = (down >= y0) & (down < y0 + side), (across >= x0) & (across < x0 + side)
    return x.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)
