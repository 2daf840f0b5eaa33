"""Labeled image sets in memory, and size limits that readers check before they allocate memory."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..core.errors import DataError

#: Longest side of an image, in pixels.
LARGEST_SIDE = 1024
#: Largest set, in bytes of pixels.
LARGEST_SET = 4 << 30

Bytes = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False, slots=True)
class ImageSet:
    """Labeled images of one size.

    Attributes
    ----------
    images : uint8 array (N, ch, H, W)
        ch is 1 (gray) or 3 (red, green, blue).
    labels : int64 array (N,)
        Index into ``classes``.
    classes : tuple of str
        Class names.
    note : str
        Source of the pixels, and whether they are lossy re-encodings (accuracies then differ from published ones).

    Raises
    ------
    DataError
        Shapes, dtypes or labels are inconsistent.
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
            raise DataError(f"labels must be int64 ({len(images)},), not {labels.dtype} {labels.shape}")
        if not len(labels):
            raise DataError("the set has no images", hint="check the data set's files")
        if labels.min() < 0 or labels.max() >= len(self.classes):
            wrong = int(labels.min()) if labels.min() < 0 else int(labels.max())
            raise DataError(
                f"the label {wrong} is not in 0 … {len(self.classes) - 1}",
                hint="check that the files belong to this data set",
            )

    def digest(self) -> str:
        """SHA-256 of shape, pixels and labels, independent of the machine."""
        found = hashlib.sha256(str(self.images.shape).encode())
        found.update(np.ascontiguousarray(self.images).data)
        found.update(self.labels.astype("<i8").tobytes())
        return found.hexdigest()


@dataclass(frozen=True, eq=False, slots=True)
class ImageTask:
    """A training and a test set with images of one shape and the same classes.

    Attributes
    ----------
    name : str
        Name of the data set in configurations.
    train, test : ImageSet

    Raises
    ------
    DataError
        The sets differ in image shape or classes.
    """

    name: str
    train: ImageSet
    test: ImageSet

    def __post_init__(self) -> None:
        train, test = self.train.images.shape[1:], self.test.images.shape[1:]
        if train != test or self.train.classes != self.test.classes:
            raise DataError(
                f"train and test images of '{self.name}' differ: {train} and {test} (channels, height, width)",
                hint="convert them to one size and number of channels, with the same classes",
            )

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names."""
        return self.train.classes


@dataclass(frozen=True, eq=False, slots=True)
class RawSplit:
    """One split of a data set as read from files, not yet validated; see :class:`ImageSet` for the fields."""

    images: Bytes
    labels: Labels
    note: str


@dataclass(frozen=True, eq=False, slots=True)
class RawDataset:
    """A data set as read from files; ``classes`` is empty if the files have no class names."""

    train: RawSplit
    test: RawSplit
    classes: tuple[str, ...] = ()


def check_size(count: int, shape: tuple[int, ...], where: str) -> None:
    """Check the size of a set of ``count`` images of ``shape`` before memory is allocated for it.

    Raises
    ------
    DataError
        A side is longer than :data:`LARGEST_SIDE`, or the set has more than :data:`LARGEST_SET` bytes.
    """
    if not all(0 < side <= LARGEST_SIDE for side in shape):
        raise DataError(
            f"{where}: an image of {' x '.join(map(str, shape))}; sides of 1 to {LARGEST_SIDE} are allowed",
            hint="scale the images down",
        )
    total = count * int(np.prod(shape, dtype=np.int64))
    if total > LARGEST_SET:
        raise DataError(
            f"{where}: {count} images of {' x '.join(map(str, shape))} have {total >> 20} MiB; at most "
            f"{LARGEST_SET >> 20} MiB are allowed",
            hint="use fewer or smaller images",
        )
