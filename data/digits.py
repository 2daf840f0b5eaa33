"""Loads the handwritten digits that are bundled with scikit-learn."""

from __future__ import annotations

import numpy as np

from ..core.extras import vision_module
from ..core.seeds import Seed
from .image_set import RawDataset, RawSplit

#: Images in the test set; the other 1,297 are the training set.
TEST_SIZE = 500
#: Largest gray value of the original images.
_WHITE = 16


def load_digits(seed: Seed) -> RawDataset:
    """Load 1,797 images of 8 x 8 pixels in ten classes, with a random stratified split.

    Parameters
    ----------
    seed : Seed
        Seed of the split; must be equal in all programs of a run.

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
    train, test = (RawSplit(images[part], labels[part], note) for part in (~chosen, chosen))
    return RawDataset(train, test)


def _stratified(labels: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Select ``size`` random samples, stratified by class with largest-remainder rounding; returns a mask."""
    classes, counts = np.unique(labels, return_counts=True)
    exact = counts * size / len(labels)
    take = np.floor(exact).astype(np.int64)
    take[np.argsort(take - exact, kind="stable")[: size - int(take.sum())]] += 1
    chosen = np.zeros(len(labels), np.bool_)
    for label, count in zip(classes, take, strict=True):
        chosen[rng.permutation(np.flatnonzero(labels == label))[:count]] = True
    return chosen
