"""Virtual image generator ``upsampled_noise``: coarse Gaussian noise, upsampled; bit-exact on every machine."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from .recipe import VirtualRecipe

Array = NDArray[np.float64]


def noise_images(recipe: VirtualRecipe) -> Iterator[Array]:
    """Yield the images of each class, [m, channels, size, size] float64, neither clamped nor rounded.

    A class has a mean μ_c ~ N(0, s_μ² I) on a coarse grid; a sample is μ_c + s_z·ε, upsampled bilinearly. The numbers
    come from NumPy's legacy ``RandomState``, whose streams are frozen, and are combined by elementwise float64
    operations in a fixed order. See ``docs/methods/vhl.md``, sections 2.2 and 7.
    """
    random = np.random.RandomState([recipe.seed & 0xFFFF_FFFF, recipe.seed >> 32])
    grid = (recipe.channels, recipe.latent, recipe.latent)
    for _ in range(recipe.classes):
        mean = recipe.class_scale * random.standard_normal(grid)
        yield upsample(mean + recipe.sample_scale * random.standard_normal((recipe.per_class, *grid)), recipe.size)


def upsample(images: Array, size: int) -> Array:
    """Bilinear upsampling [..., s, s] → [..., size, size], as PyTorch's ``interpolate`` with ``align_corners=False``.

    Written with elementwise operations, because the order of sums in a matrix product depends on the BLAS library.
    """
    low, high, weight = _neighbors(images.shape[-1], size)
    columns = images[..., low] * (1 - weight) + images[..., high] * weight
    upsampled: Array = columns[..., low, :] * (1 - weight)[:, None] + columns[..., high, :] * weight[:, None]
    return upsampled


def _neighbors(old: int, new: int) -> tuple[NDArray[np.intp], NDArray[np.intp], Array]:
    """For each new pixel, the indices of its two old neighbors (equal at the edges) and the weight of the second."""
    position = np.maximum((np.arange(new, dtype=np.float64) + 0.5) * (old / new) - 0.5, 0.0)
    low = np.floor(position).astype(np.intp)
    return low, np.minimum(low + 1, old - 1), position - low
