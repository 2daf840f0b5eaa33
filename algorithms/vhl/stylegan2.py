"""Virtual image generator ``stylegan2``: the synthesis network of StyleGAN2 with its random initial weights."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

#: Channels at each resolution (channel multiplier 1).
CHANNELS = {4: 512, 8: 512, 16: 512, 32: 512, 64: 256, 128: 128, 256: 64, 512: 32, 1024: 16}


class StyleGAN2(nn.Module):
    """An untrained StyleGAN2 synthesis network with a mapping network of one layer.

    Parameters
    ----------
    style : int
        Elements of z and of the style vector.
    size : int
        Height and width of the images: 8, 16, 32 … 1024.
    channels : int
        Channels of the images.
    seed : int
        Seed of the weights; PyTorch's global generator keeps its state.

    Notes
    -----
    16 903 251 parameters at style 64, size 32, 3 channels. Source: Karras et al., arXiv 1912.04958; see
    ``docs/methods/vhl.md``, section 2.2.
    """

    def __init__(self, style: int = 64, size: int = 32, channels: int = 3, *, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        sizes = [s for s in CHANNELS if s <= size]
        self.mapping = Mapping(style, generator)
        self.constant = nn.Parameter(torch.randn(1, CHANNELS[4], 4, 4, generator=generator))
        self.first = StyledConvolution(style, CHANNELS[4], CHANNELS[4], False, generator)
        self.convolutions, self.to_images = (
            nn.ModuleList(),
            nn.ModuleList([ToImage(style, CHANNELS[4], channels, generator)]),
        )
        for old, new in pairwise(CHANNELS[s] for s in sizes):
            self.convolutions.append(StyledConvolution(style, old, new, True, generator))
            self.convolutions.append(StyledConvolution(style, new, new, False, generator))
            self.to_images.append(ToImage(style, new, channels, generator))
        self.requires_grad_(False)

    def forward(self, z: Tensor, noise: torch.Generator | None = None) -> Tensor:
        """Generate images [B, channels, size, size] float32 from z [B, style]; mean about -0.3, deviation about 1.2.

        ``noise`` draws the per-pixel noise of each layer. Its strength is initialized to zero and never trained, so it
        does not change the images.
        """
        style = self.mapping(z)
        x = self.first(self.constant.expand(len(z), -1, -1, -1), style, noise)
        image: Tensor = self.to_images[0](x, style)
        for i, to_image in enumerate(list(self.to_images)[1:]):
            x = self.convolutions[2 * i](x, style, noise)
            x = self.convolutions[2 * i + 1](x, style, noise)
            image = to_image(x, style) + upsample2x(image)
        return image


class Mapping(nn.Module):
    """Mapping network z [B, s] → style [B, s]: pixel norm, an equalized linear layer, leaky ReLU."""

    #: Learning rate multiplier: weights are stored divided by it and multiplied by it in the forward pass.
    RATE = 0.01

    def __init__(self, style: int, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(style, style, generator=generator) / self.RATE)
        self.bias = nn.Parameter(torch.zeros(style))
        self.scale = self.RATE / math.sqrt(style)

    def forward(self, z: Tensor) -> Tensor:
        """(B, s) to (B, s)."""
        z = z * torch.rsqrt(z.square().mean(dim=1, keepdim=True) + 1e-8)
        return _activate(F.linear(z, self.weight * self.scale, self.bias * self.RATE))


class ModulatedConvolution(nn.Module):
    """Modulated convolution [B, i, H, W] → [B, o, H, W]: an affine map of the style scales the input channels.

    With ``demodulate`` each output channel is rescaled to unit expected deviation. Scaling inputs and outputs is
    equivalent to per-sample weights, at the cost of a convolution with shared weights.
    """

    def __init__(self, style: int, inputs: int, outputs: int, kernel: int, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel, generator=generator))
        self.scale = 1 / math.sqrt(inputs * kernel**2)
        self.style_weight = nn.Parameter(torch.randn(inputs, style, generator=generator))
        self.style_bias = nn.Parameter(torch.ones(inputs))

    def forward(self, x: Tensor, style: Tensor, *, demodulate: bool = True, upsample: bool = False) -> Tensor:
        """Convolve; ``upsample`` doubles height and width."""
        modulation = F.linear(style, self.style_weight / math.sqrt(style.shape[1]), self.style_bias)  # [B, i]
        weight = self.weight * self.scale
        x = x * modulation[:, :, None, None]
        if upsample:
            x = _blur(F.conv_transpose2d(x, weight.transpose(0, 1), stride=2))
        else:
            x = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
        if demodulate:
            energy = modulation.square() @ weight.square().sum(dim=(2, 3)).T  # [B, o]
            x = x * torch.rsqrt(energy + 1e-8)[:, :, None, None]
        return x


class StyledConvolution(nn.Module):
    """A modulated 3x3 convolution, per-pixel noise with strength zero, a bias and a leaky ReLU."""

    def __init__(self, style: int, inputs: int, outputs: int, upsample: bool, generator: torch.Generator) -> None:
        super().__init__()
        self.convolution = ModulatedConvolution(style, inputs, outputs, 3, generator)
        self.upsample = upsample
        self.noise_strength = nn.Parameter(torch.zeros(1))
        self.bias = nn.Parameter(torch.zeros(outputs, 1, 1))

    def forward(self, x: Tensor, style: Tensor, noise: torch.Generator | None) -> Tensor:
        """[B, i, H, W] → [B, o, H, W], or [B, o, 2H, 2W] with upsampling."""
        x = self.convolution(x, style, upsample=self.upsample)
        if noise is not None:
            drawn = torch.randn(len(x), 1, *x.shape[2:], generator=noise).to(x.device)
            x = x + self.noise_strength * drawn
        return _activate(x + self.bias)


class ToImage(nn.Module):
    """A modulated 1x1 convolution to image channels (toRGB), not demodulated."""

    def __init__(self, style: int, inputs: int, channels: int, generator: torch.Generator) -> None:
        super().__init__()
        self.convolution = ModulatedConvolution(style, inputs, channels, 1, generator)
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """[B, i, H, W] → [B, channels, H, W]."""
        image: Tensor = self.convolution(x, style, demodulate=False)
        return image + self.bias


def upsample2x(x: Tensor) -> Tensor:
    """Double height and width: insert zeros between pixels, then apply the [1, 3, 3, 1] filter with gain 4."""
    return F.conv_transpose2d(x, _filter(x), stride=2, padding=1, groups=x.shape[1])


def _blur(x: Tensor) -> Tensor:
    """Apply the [1, 3, 3, 1] filter with gain 4, [B, c, 2H+1, 2W+1] → [B, c, 2H, 2W]."""
    return F.conv2d(x, _filter(x), padding=1, groups=x.shape[1])


def _filter(x: Tensor) -> Tensor:
    """The filter [c, 1, 4, 4] for the c channels of ``x``; sums to 4, because three of four input pixels are zero."""
    line = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=x.dtype, device=x.device) / 4
    return torch.outer(line, line).expand(x.shape[1], 1, 4, 4)


def _activate(x: Tensor) -> Tensor:
    """Leaky ReLU with slope 0.2, scaled by √2 to preserve the variance."""
    return F.leaky_relu(x, 0.2) * math.sqrt(2)
