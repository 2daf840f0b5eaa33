"""Virtual image generator ``conv_decoder``: one small convolutional decoder per class, trained for diversity."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ...models.initialization import seeded

#: Height and width at which :func:`gram_penalty` compares pixels.
GRAM_SIDE = 8


class ConvDecoder(nn.Sequential):
    """Decoder from z [B, latent] to images [B, channels, size, size] in (-1, 1).

    A linear layer to 8 maps of a quarter of the size; four transposed convolutions, the first two followed by 2x
    upsampling; four convolutions without padding; tanh. At size 32 the heights of the maps are 8, 10, 20, 22, 44, 46,
    48, 44, 40, 36, 32.

    Parameters
    ----------
    latent : int
        Elements of z.
    width : int
        Channels of the convolutions.
    size : int
        Height and width, a multiple of 4.
    channels : int
        Channels of the images.

    Notes
    -----
    434 179 parameters by default. Initial weights come from PyTorch's global generator; :func:`diverse_decoder` seeds
    them. See ``docs/methods/vhl.md``, section 2.2.
    """

    def __init__(self, latent: int = 8, width: int = 64, size: int = 32, channels: int = 3) -> None:
        side = size // 4
        hidden = 8 * side**2
        layers: list[nn.Module] = [nn.Linear(latent, hidden), nn.BatchNorm1d(hidden), nn.ReLU()]
        layers.append(nn.Unflatten(1, (8, side, side)))
        for i, (old, new) in enumerate(pairwise((8, width, width, width, width))):
            layers += [nn.ConvTranspose2d(old, new, 3), nn.BatchNorm2d(new), nn.ReLU()]
            if i < 2:
                layers.append(nn.Upsample(scale_factor=2, mode="nearest"))
        for _ in range(3):
            layers += [nn.Conv2d(width, width, 5), nn.BatchNorm2d(width), nn.ReLU()]
        super().__init__(*layers, nn.Conv2d(width, channels, 5), nn.Tanh())


def diverse_decoder(
    latent: int,
    size: int,
    channels: int,
    seed: int,
    *,
    width: int = 64,
    steps: int = 50,
    device: torch.device | str = "cpu",
) -> ConvDecoder:
    """A decoder after ``steps`` steps of SGD (learning rate 0.01, batches of 64) on :func:`gram_penalty`.

    It is in evaluation mode and without gradients; its weights and batches depend on ``seed`` only.
    """
    decoder = seeded(lambda: ConvDecoder(latent, width, size, channels), seed).to(device)
    generator = torch.Generator().manual_seed(seed ^ 1)
    optimizer = torch.optim.SGD(decoder.parameters(), lr=0.01)
    with torch.enable_grad():
        for _ in range(steps):
            z = torch.randn(64, latent, generator=generator).to(device)
            optimizer.zero_grad()
            gram_penalty(decoder(z)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return decoder.eval().requires_grad_(False)


def gram_penalty(images: Tensor) -> Tensor:
    """Penalty on correlated pixels of ``images`` [B, c, H, W]: a scalar ≥ 0, small for diverse images.

    Images are resized to 8x8 and each channel of each image is scaled to norm 1. For every channel, the squared
    off-diagonal entries of the pixels' Gram matrix [64, 64] are averaged over the matrix and divided by B - 1; the
    penalty is the sum over channels.
    """
    small = F.interpolate(images, size=(GRAM_SIDE, GRAM_SIDE), mode="bilinear", align_corners=False)
    x_bcp = F.normalize(small.flatten(2), dim=2)
    gram_cpp = torch.einsum("bcp,bcq->cpq", x_bcp, x_bcp)
    off_diagonal = gram_cpp - torch.diag_embed(gram_cpp.diagonal(dim1=1, dim2=2))
    return off_diagonal.square().mean(dim=(1, 2)).sum() / (len(images) - 1)
