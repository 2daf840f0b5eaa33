"""Virtual images from noise on a coarse grid, enlarged: the same bits on every machine."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from .recipe import VirtualRecipe

Array = NDArray[np.float64]


def noise_images(recipe: VirtualRecipe) -> Iterator[Array]:
    """Yield the images of each class, [m, channels, size, size] float64, neither clamped nor rounded.

    A class has a mean μ_c ~ N(0, s_μ² I) on a coarse grid; a sample is μ_c + s_z·ε, enlarged bilinearly. All of it is
    made of single float64 operations in a fixed order on the numbers of a legacy ``RandomState``, which NumPy has
    promised never to change. Source: specification of VHL §3.1 (``upsampled_noise``), §8.1.
    """
    random = np.random.RandomState([recipe.seed & 0xFFFF_FFFF, recipe.seed >> 32])
    grid = (recipe.channels, recipe.latent, recipe.latent)
    for _ in range(recipe.classes):
        mean = recipe.class_scale * random.standard_normal(grid)
        yield enlarge(mean + recipe.sample_scale * random.standard_normal((recipe.per_class, *grid)), recipe.size)


def enlarge(images: Array, size: int) -> Array:
    """Bilinear enlargement [..., s, s] → [..., size, size]; pixel centers at half-integers (align_corners false).

    Written as two products and a sum per axis: a matrix product would leave their order to the BLAS library.
    """
    low, high, share = _neighbors(images.shape[-1], size)
    wide = images[..., low] * (1 - share) + images[..., high] * share
    tall: Array = wide[..., low, :] * (1 - share)[:, None] + wide[..., high, :] * share[:, None]
    return tall


def _neighbors(old: int, new: int) -> tuple[NDArray[np.intp], NDArray[np.intp], Array]:
    """For each new pixel its two old ones and the weight of the second; at the edges they are the same one."""
    place = np.maximum((np.arange(new, dtype=np.float64) + 0.5) * (old / new) - 0.5, 0.0)
    low = np.floor(place).astype(np.intp)
    return low, np.minimum(low + 1, old - 1), place - low
