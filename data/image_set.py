"""Labeled images in memory, and the limits that a file's claims are held to before memory is taken."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..core.errors import DataError

#: Longest side of an image, in pixels: what is larger is not for the models here.
LARGEST_SIDE = 1024
#: Largest set, in bytes of pixels.
LARGEST_SET = 4 << 30

Bytes = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False, slots=True)
class ImageSet:
    """Images of one size and their classes.

    Attributes
    ----------
    images : uint8 array (N, ch, H, W)
        ch is 1 (gray) or 3 (red, green, blue).
    labels : int64 array (N,)
        Index into ``classes``.
    classes : tuple of str
        Names of the classes.
    note : str
        Where the pixels come from, and whether they are lossy re-encodings: then accuracies differ from those that
        others report.

    Raises
    ------
    DataError
        Arrays and classes do not fit each other.
    """

    images: Bytes
    labels: Labels
    classes: tuple[str, ...]
    note: str

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise DataError(f"images must be uint8 (N, 1 or 3, H, W), not {images.dtype} {images.shape}")
        if labels.dtype != np.int64 or labels.shape != images.shape[:1]:
            raise DataError(f"{len(images)} images need as many int64 labels, not {labels.dtype} {labels.shape}")
        if not len(labels):
            raise DataError("there are no images", hint="check the data set's files")
        if labels.min() < 0 or labels.max() >= len(self.classes):
            wrong = int(labels.min()) if labels.min() < 0 else int(labels.max())
            raise DataError(
                f"the label {wrong} is none of the {len(self.classes)} classes, which count from 0",
                hint="check that the files belong to this data set",
            )

    def digest(self) -> str:
        """SHA-256 of pixels and labels: equal on two machines exactly if they hold the same set in the same order."""
        found = hashlib.sha256(str(self.images.shape).encode())
        found.update(np.ascontiguousarray(self.images).data)
        found.update(self.labels.astype("<i8").tobytes())
        return found.hexdigest()


@dataclass(frozen=True, eq=False, slots=True)
class ImageTask:
    """A train and a test set of the same kind.

    Attributes
    ----------
    name : str
        What a configuration calls it.
    train, test : ImageSet
        Same size of image, same classes.

    Raises
    ------
    DataError
        The two sets do not fit each other.
    """

    name: str
    train: ImageSet
    test: ImageSet

    def __post_init__(self) -> None:
        ours, theirs = self.train.images.shape[1:], self.test.images.shape[1:]
        if ours != theirs or self.train.classes != self.test.classes:
            raise DataError(
                f"train and test images of '{self.name}' differ: {ours} and {theirs} (channels, height, width)",
                hint="bring them to one size and one number of channels",
            )

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.train.classes


@dataclass(frozen=True, eq=False, slots=True)
class Pixels:
    """What a reader found in one part of a data set: ``images`` and ``labels`` as in :class:`ImageSet`."""

    images: Bytes
    labels: Labels
    note: str


@dataclass(frozen=True, eq=False, slots=True)
class Reading:
    """What a reader found in a folder; ``classes`` is empty where the files do not name them."""

    train: Pixels
    test: Pixels
    classes: tuple[str, ...] = ()


def check_size(count: int, shape: tuple[int, ...], where: str) -> None:
    """Refuse a set of ``count`` images of ``shape`` that is too large, before memory is taken for it.

    Raises
    ------
    DataError
        A side is longer than :data:`LARGEST_SIDE` or all together are more than :data:`LARGEST_SET` bytes.
    """
    if not all(0 < side <= LARGEST_SIDE for side in shape):
        raise DataError(
            f"{where}: an image of {' x '.join(map(str, shape))} where sides of 1 to {LARGEST_SIDE} are allowed",
            hint="scale the images down",
        )
    total = count * int(np.prod(shape, dtype=np.int64))
    if total > LARGEST_SET:
        raise DataError(
            f"{where}: {count} images of {' x '.join(map(str, shape))} are {total >> 20} MiB, and {LARGEST_SET >> 20} "
            f"MiB are allowed",
            hint="use fewer or smaller images",
        )
