"""Loads image classification data sets by name; detects the format of their folder."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from ..core.errors import DataError
from ..core.seeds import Seed
from .digits import load_digits
from .image_folder import locate_folder, read_folder
from .image_idx import FASHION_MD5, MNIST_MD5, locate_idx, read_idx
from .image_parquet import locate_parquet, read_parquet
from .image_set import ImageSet, ImageTask, RawDataset, RawSplit
from .image_torchvision import locate_cifar10, locate_cifar100, locate_svhn, read_cifar, read_svhn
from .registry import Find

__all__ = ["KNOWN", "ImageSet", "ImageTask", "load_images", "packages_for"]


@dataclass(frozen=True, slots=True)
class Format:
    """A storage format of image data sets.

    Attributes
    ----------
    contents : str
        Files of this format, for error messages.
    locate : callable
        Returns the folder with the files, at or below the given one, or None if it has no file of this format.
    read : callable
        Reads that folder.
    """

    contents: str
    locate: Callable[[Path], Path | None]
    read: Callable[[Path], RawDataset]


@dataclass(frozen=True, slots=True)
class KnownImages:
    """A published data set; ``names`` is empty if the class names are read from the files."""

    classes: int
    names: tuple[str, ...]
    official: Format | None


_DIGITS = tuple("0123456789")
_FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_IDX = "train-images-idx3-ubyte.gz and its three neighbors"

#: The published data sets by name.
KNOWN: dict[str, KnownImages] = {
    "digits": KnownImages(10, _DIGITS, None),
    "mnist": KnownImages(10, _DIGITS, Format(_IDX, locate_idx, partial(read_idx, checksums=MNIST_MD5))),
    "fmnist": KnownImages(10, _FASHION_CLASSES, Format(_IDX, locate_idx, partial(read_idx, checksums=FASHION_MD5))),
    "cifar10": KnownImages(
        10, _CIFAR10_CLASSES, Format("cifar-10-batches-py/", locate_cifar10, partial(read_cifar, reader="CIFAR10"))
    ),
    "cifar100": KnownImages(
        100, (), Format("cifar-100-python/", locate_cifar100, partial(read_cifar, reader="CIFAR100"))
    ),
    "svhn": KnownImages(10, _DIGITS, Format("train_32x32.mat and test_32x32.mat", locate_svhn, read_svhn)),
}

#: Formats that are accepted for any data set.
_GENERIC = (
    Format("train*.parquet and test*.parquet", locate_parquet, read_parquet),
    Format("train/<class>/*.png and test/<class>/*.png", locate_folder, read_folder),
)


def packages_for(name: str) -> tuple[str, ...]:
    """Return the packages without which a data set cannot be read in any format."""
    return ("sklearn",) if name == "digits" else ()


def load_images(name: str, find: Find, seed: Seed) -> ImageTask:
    """Read an image data set.

    Parameters
    ----------
    name : str
        A key of :data:`KNOWN`, or any name of a data set that is stored as Parquet files or an image folder.
    find : callable
        Returns the folder of a data set, e.g. ``session.data``; not called for ``digits``.
    seed : Seed
        Seed of the split of ``digits``; must be equal in all programs of a run.

    Returns
    -------
    ImageTask
        The ``note`` of its sets names the source of the pixels and whether they are lossy re-encodings.

    Raises
    ------
    DataError
        The data set is not found, or one of its files is missing, damaged, or not the published one.
    MissingExtraError
        The package that reads this format is not installed.
    """
    known = KNOWN.get(name)
    if name == "digits":
        return _task(name, known, load_digits(seed), "scikit-learn")
    folder = _folder(name, find)
    official = (known.official,) if known and known.official else ()
    for format_ in (*official, *_GENERIC):
        try:
            location = format_.locate(folder)
        except OSError as error:
            raise DataError(f"{folder} cannot be read: {error.strerror}", hint="check its permissions") from error
        if location is not None:
            return _task(name, known, format_.read(location), str(location))
    archives = sorted(f.name for f in folder.iterdir() if f.name.endswith((".tar.gz", ".tgz", ".tar", ".zip")))
    choices = "; ".join(f.contents for f in (*official, *_GENERIC))
    raise DataError(
        f"{folder} contains no image data set '{name}'",
        hint=f"unpack {archives[0]} there" if archives else f"give a folder that contains {choices}",
    )


def _folder(name: str, find: Find) -> Path:
    try:
        folder = Path(find(name))
    except DataError as error:
        near = difflib.get_close_matches(name.lower().replace("-", ""), KNOWN, n=1)
        if name in KNOWN or not near:
            raise
        raise DataError(error.message, hint=f"did you mean '{near[0]}'?") from error
    if not folder.is_dir():
        raise DataError(
            f"the folder {folder} of the data set '{name}' does not exist or is not a folder",
            hint="give the folder that contains its files",
        )
    return folder


def _task(name: str, known: KnownImages | None, found: RawDataset, where: str) -> ImageTask:
    """Assign class names; sort the classes of a published data set into the published order."""
    classes = found.classes
    if not classes and known:
        classes = known.names or tuple(str(i) for i in range(known.classes))
    elif not classes:
        found, classes = _numbered(found, where)
    if known and len(classes) != known.classes:
        raise DataError(
            f"{where} has {len(classes)} classes, but '{name}' has {known.classes}",
            hint="use another name for the data set, or complete it",
        )
    order = np.arange(len(classes))
    if known and set(known.names) == set(classes):
        order = np.array([known.names.index(c) for c in classes])
        classes = known.names
    try:
        train, test = (_set(p, order, classes) for p in (found.train, found.test))
        return ImageTask(name, train, test)
    except DataError as error:
        raise DataError(f"{where}: {error.message}", hint=error.hint) from error


def _numbered(found: RawDataset, where: str) -> tuple[RawDataset, tuple[str, ...]]:
    """Number the labels that occur in the training set from 0, and return the labels as class names.

    A label's value is no size: labels from 1, or with gaps, would otherwise leave classes without examples.
    """
    values = np.unique(found.train.labels)
    unknown = np.setdiff1d(found.test.labels, values)
    if len(unknown):
        raise DataError(
            f"{where}: the test set has the label {unknown[0]}, which the training set does not have",
            hint="use the same labels in both",
        )
    classes = tuple(str(value) for value in values)
    if np.array_equal(values, np.arange(len(values))):
        return found, classes
    note = f"; labels {classes[0]} to {classes[-1]} are numbered from 0 to {len(classes) - 1}"
    train, test = (
        replace(part, labels=np.searchsorted(values, part.labels).astype(np.int64), note=part.note + note)
        for part in (found.train, found.test)
    )
    return RawDataset(train, test), classes


def _set(part: RawSplit, order: np.ndarray, classes: tuple[str, ...]) -> ImageSet:
    labels = part.labels
    if len(labels) and labels.min() >= 0 and labels.max() < len(order):
        labels = order[labels].astype(np.int64)
    return ImageSet(part.images, labels, classes, part.note)
