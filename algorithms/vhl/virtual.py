"""The virtual data set: labeled images that hold nothing private, the same on every node."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...core.errors import DataError
from ...core.seeds import Seed
from .conv_decoder import diverse_decoder
from .noise import noise_images
from .recipe import VirtualRecipe
from .stylegan2 import StyleGAN2

__all__ = ["VirtualData", "VirtualRecipe"]

Floats: TypeAlias = NDArray[np.floating[Any]]

#: Images that a network makes at a time.
CHUNK = 50


@dataclass(frozen=True, slots=True, eq=False)
class VirtualData:
    """Virtual images and their labels, class by class.

    Attributes
    ----------
    images : Tensor [C_v·m, channels, size, size] uint8
        On the CPU, contiguous.
    recipe : VirtualRecipe
        How they are made.
    labels : Tensor [C_v·m] int64
        0 to C_v - 1, in ascending order.
    digest : str
        SHA-256 of the images' bytes, in hexadecimal: the identity of the set.

    Raises
    ------
    DataError
        The images do not have the shape or type that the recipe says.
    """

    images: Tensor
    recipe: VirtualRecipe
    labels: Tensor = field(init=False)
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        images, recipe = self.images, self.recipe
        if images.dtype != torch.uint8 or tuple(images.shape) != recipe.shape:
            raise DataError(
                f"virtual images are {images.dtype} {tuple(images.shape)}, their recipe says uint8 {recipe.shape}",
                hint="make or fetch the virtual data anew",
            )
        images = images.cpu().contiguous()
        object.__setattr__(self, "images", images)
        object.__setattr__(self, "labels", torch.arange(recipe.classes).repeat_interleave(recipe.per_class))
        object.__setattr__(self, "digest", hashlib.sha256(images.numpy().data).hexdigest())

    @classmethod
    def from_recipe(cls, recipe: VirtualRecipe, *, device: torch.device | str = "cpu") -> VirtualData:
        """Make the set.

        Only ``upsampled_noise`` has the same digest on every machine; networks (run on ``device``) differ in last bits
        from one kind of machine to another, so their images are sent, not remade. No global generator is touched.
        """
        classes = [quantize(images) for images in _raw(recipe, torch.device(device))]
        return cls(torch.from_numpy(np.concatenate(classes)), recipe)

    def verify(self, digest: str) -> None:
        """Check that this is the set called ``digest``.

        Raises
        ------
        DataError
            It is another one.
        """
        if digest != self.digest:
            raise DataError(
                f"the virtual data have the digest {self.digest[:12]}…, not {digest[:12]}…",
                hint="have the server ship the images instead of the seed",
            )

    def floats(self, rows: Tensor | slice = slice(None), mean: float = 0.5, deviation: float = 0.25) -> Tensor:
        """Images as a network takes them, (x/255 - mean)/deviation: [n, channels, size, size] float32."""
        return (self.images[rows].float() / 255 - mean) / deviation


def quantize(images: Floats) -> NDArray[np.uint8]:
    """Clamp to [0, 1] and round to 0 … 255, halves to the even number; nothing is rescaled."""
    rounded: NDArray[np.uint8] = np.rint(np.clip(images, 0.0, 1.0) * 255.0).astype(np.uint8)
    return rounded


def _raw(recipe: VirtualRecipe, device: torch.device) -> Iterator[Floats]:
    """The images of each class before they are clamped, [m, channels, size, size]."""
    if recipe.generator == "upsampled_noise":
        return iter(noise_images(recipe))
    return _from_networks(recipe, device)


@torch.no_grad()
def _from_networks(recipe: VirtualRecipe, device: torch.device) -> Iterator[Floats]:
    """Samples z = μ_c + s_z·ε of each class, through one network for all (stylegan2) or one for each."""
    seed = Seed(recipe.seed).child("virtual")
    draw = torch.Generator().manual_seed(seed.child("samples").value)
    means = recipe.class_scale * torch.randn(recipe.classes, recipe.latent, generator=draw)
    size, channels = recipe.size, recipe.channels
    network: torch.nn.Module
    if recipe.generator == "stylegan2":
        network = StyleGAN2(recipe.latent, size, channels, seed=seed.child("network").value).to(device)
    for c in range(recipe.classes):
        if recipe.generator == "conv_decoder":
            network = diverse_decoder(recipe.latent, size, channels, seed.child("network", c).value, device=device)
        z = means[c] + recipe.sample_scale * torch.randn(recipe.per_class, recipe.latent, generator=draw)
        yield np.concatenate([network(part.to(device)).cpu().numpy() for part in torch.split(z, CHUNK)])
