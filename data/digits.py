"""The handwritten digits that scikit-learn brings along: a data set that every machine has."""

from __future__ import annotations

import numpy as np

from ..core.extras import vision_module
from ..core.seeds import Seed
from .image_set import Pixels, Reading

#: Images in the test set; the other 1,297 are for training.
TEST_SIZE = 500
#: Gray values in the original run from 0 to this.
_WHITE = 16


def load_digits(seed: Seed) -> Reading:
    """1,797 images of 8 x 8 in ten classes, split at random with the class frequencies kept.

    Parameters
    ----------
    seed : Seed
        Decides which images are for testing. All programs of a run must give the same.

    Raises
    ------
    MissingExtraError
        scikit-learn is not installed.
    """
    found = vision_module("sklearn.datasets").load_digits()
    images = np.rint(found.images * (255 / _WHITE)).astype(np.uint8)[:, None]
    labels = found.target.astype(np.int64)
    chosen = _stratified(labels, TEST_SIZE, seed.child("digits", "test").numpy())
    note = "the digits of scikit-learn, gray values 0-16 scaled to 0-255"
    train, test = (Pixels(images[part], labels[part], note) for part in (~chosen, chosen))
    return Reading(train, test)


def _stratified(labels: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Mark ``size`` random samples; every class gets its share, rounded by largest remainder."""
    classes, counts = np.unique(labels, return_counts=True)
    exact = counts * size / len(labels)
    take = np.floor(exact).astype(np.int64)
    take[np.argsort(take - exact, kind="stable")[: size - int(take.sum())]] += 1
    chosen = np.zeros(len(labels), np.bool_)
    for label, count in zip(classes, take, strict=True):
        chosen[rng.permutation(np.flatnonzero(labels == label))[:count]] = True
    return chosen
