"""Batched image preprocessing: the published normalization, crop, flip and Cutout of each data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ..core.errors import ConfigError

Choice = Literal["none", "official"]
Triple = tuple[float, ...]

#: Width in pixels of the black border that is added before a random crop.
PAD = 4


@dataclass(frozen=True, slots=True)
class ImageTransform:
    """Preprocessing of a batch of images (``docs/methods/vhl.md``, section 9).

    Attributes
    ----------
    mean, deviation : tuple of float
        One value per channel, or one for all, for pixels in [0, 1]: the result is (x/255 - mean)/deviation.
    crop_flip : bool
        Random crop with a black border of :data:`PAD` pixels, and horizontal flip with probability 1/2.
    cutout : int
        Side of the square that is set to 0 after scaling; 0 = none. It may extend beyond the image (Cutout, arXiv
        1708.04552).
    """

    mean: Triple = (0.5,)
    deviation: Triple = (0.25,)
    crop_flip: bool = False
    cutout: int = 0

    def __call__(self, images: Tensor, draw: torch.Generator | None = None) -> Tensor:
        """Convert uint8 ``images`` [B, channels, H, W] to fp32; with a CPU generator ``draw``, also augment them."""
        if draw is not None and self.crop_flip:
            images = crop_and_flip(images, draw)
        mean, deviation = (torch.tensor(t).view(-1, 1, 1) for t in (self.mean, self.deviation))
        x = (images.float() / 255 - mean) / deviation
        return cut_out(x, self.cutout, draw) if draw is not None and self.cutout else x


#: Scaling of virtual images, and of natural images with ``normalize: matched``.
MATCHED = ImageTransform()
_CIFAR100 = ImageTransform((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), crop_flip=True, cutout=16)
_PLAIN = ImageTransform((0.0,), (1.0,))
OFFICIAL = {
    "cifar10": ImageTransform((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), crop_flip=True),
    "cifar100": _CIFAR100,
    "fmnist": _PLAIN,
    "svhn": _PLAIN,
}


def image_transforms(
    dataset: str, normalize: Literal["matched", "official"], augment: Choice
) -> tuple[ImageTransform, ImageTransform]:
    """Transforms of natural and of virtual images for training.

    Raises
    ------
    ConfigError
        No official transform is known for this data set.
    """
    if normalize == "matched" and augment == "none":
        return MATCHED, MATCHED
    if dataset not in OFFICIAL:
        raise ConfigError(
            f"no official image transform is known for '{dataset}'",
            hint=f"use normalize=matched and augment=none, or one of {', '.join(OFFICIAL)}",
        )
    official, augmented = OFFICIAL[dataset], augment == "official"
    scale = official if normalize == "official" else MATCHED
    cutout = official.cutout if augmented else 0
    natural = ImageTransform(scale.mean, scale.deviation, official.crop_flip and augmented, cutout)
    return natural, ImageTransform(crop_flip=augmented)


def resize_images(images: Tensor, size: int) -> Tensor:
    """Resize uint8 images [N, channels, H, W] to [N, channels, size, size], bilinear with antialiasing."""
    if images.shape[-1] == size:
        return images
    parts = [
        F.interpolate(part.float(), (size, size), mode="bilinear", align_corners=False, antialias=True)
        for part in torch.split(images, 4096)
    ]
    return torch.cat([part.round().clamp(0, 255).to(torch.uint8) for part in parts])


def crop_and_flip(images: Tensor, draw: torch.Generator) -> Tensor:
    """Pad each image of [B, channels, H, W] by :data:`PAD`, crop it at random and flip it with probability 1/2."""
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
    """Set a square around a random pixel of each image of ``x`` [B, channels, H, W] to zero (Cutout)."""
    count, _, height, width = x.shape
    y0 = torch.randint(height, (count, 1), generator=draw) - side // 2
    x0 = torch.randint(width, (count, 1), generator=draw) - side // 2
    down, across = torch.arange(height), torch.arange(width)
    rows, columns = (down >= y0) & (down < y0 + side), (across >= x0) & (across < x0 + side)
    return x.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)
