"""The virtual data set: labeled images generated from a recipe, identical on every node."""

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

#: Images per forward pass of a generator network.
CHUNK = 50


@dataclass(frozen=True, slots=True, eq=False)
class VirtualData:
    """Virtual images and their labels, sorted by class.

    Attributes
    ----------
    images : Tensor [C_v·m, channels, size, size] uint8
        On the CPU, contiguous.
    recipe : VirtualRecipe
        The recipe that determines the images.
    labels : Tensor [C_v·m] int64
        0 to C_v - 1, in ascending order.
    digest : str
        SHA-256 of the images' bytes, hexadecimal; identifies the set.

    Raises
    ------
    DataError
        Shape or dtype of the images differs from the recipe.
    """

    images: Tensor
    recipe: VirtualRecipe
    labels: Tensor = field(init=False)
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        images, recipe = self.images, self.recipe
        if images.dtype != torch.uint8 or tuple(images.shape) != recipe.shape:
            raise DataError(
                f"virtual images are {images.dtype} {tuple(images.shape)}, but their recipe says uint8 {recipe.shape}",
                hint="generate or fetch the virtual data again",
            )
        images = images.cpu().contiguous()
        object.__setattr__(self, "images", images)
        object.__setattr__(self, "labels", torch.arange(recipe.classes).repeat_interleave(recipe.per_class))
        object.__setattr__(self, "digest", hashlib.sha256(images.numpy().data).hexdigest())

    @classmethod
    def from_recipe(cls, recipe: VirtualRecipe, *, device: torch.device | str = "cpu") -> VirtualData:
        """Generate the set.

        Only ``upsampled_noise`` is bit-exact on every machine. The output of networks, which run on ``device``, depends
        on the hardware in its last bits, so such images are sent rather than regenerated. Global random generators keep
        their state.
        """
        classes = [quantize(images) for images in _generate(recipe, torch.device(device))]
        return cls(torch.from_numpy(np.concatenate(classes)), recipe)

    def verify(self, digest: str) -> None:
        """Check the digest of the set.

        Raises
        ------
        DataError
            The set has another digest.
        """
        if digest != self.digest:
            raise DataError(
                f"the virtual data have the digest {self.digest[:12]}…, not {digest[:12]}…",
                hint="let the server send the images: virtual.distribution=ship",
            )

    def floats(self, rows: Tensor | slice = slice(None), mean: float = 0.5, deviation: float = 0.25) -> Tensor:
        """Images scaled for a network, (x/255 - mean)/deviation: [n, channels, size, size] float32."""
        return (self.images[rows].float() / 255 - mean) / deviation


def quantize(images: Floats) -> NDArray[np.uint8]:
    """Clamp to [0, 1], multiply by 255 and round half to even; there is no rescaling to the range of the images."""
    rounded: NDArray[np.uint8] = np.rint(np.clip(images, 0.0, 1.0) * 255.0).astype(np.uint8)
    return rounded


def _generate(recipe: VirtualRecipe, device: torch.device) -> Iterator[Floats]:
    """Yield the images of each class before quantization, [m, channels, size, size]."""
    if recipe.generator == "upsampled_noise":
        return iter(noise_images(recipe))
    return _network_images(recipe, device)


@torch.no_grad()
def _network_images(recipe: VirtualRecipe, device: torch.device) -> Iterator[Floats]:
    """Yield images of samples z = μ_c + s_z·ε; stylegan2 has one network, conv_decoder one network per class."""
    seed = Seed(recipe.seed).child("virtual")
    generator = torch.Generator().manual_seed(seed.child("samples").value)
    means = recipe.class_scale * torch.randn(recipe.classes, recipe.latent, generator=generator)
    size, channels = recipe.size, recipe.channels
    network: torch.nn.Module
    if recipe.generator == "stylegan2":
        network = StyleGAN2(recipe.latent, size, channels, seed=seed.child("network").value).to(device)
    for c in range(recipe.classes):
        if recipe.generator == "conv_decoder":
            network = diverse_decoder(recipe.latent, size, channels, seed.child("network", c).value, device=device)
        z = means[c] + recipe.sample_scale * torch.randn(recipe.per_class, recipe.latent, generator=generator)
        yield np.concatenate([network(chunk.to(device)).cpu().numpy() for chunk in torch.split(z, CHUNK)])
