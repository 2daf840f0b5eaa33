"""Reads CIFAR-10, CIFAR-100 and SVHN from their official files, with torchvision's readers.

The CIFAR files are pickles. torchvision verifies the published checksum of each file before it unpickles it, so no
other file is ever unpickled.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import DataError
from ..core.extras import missing_vision, vision_module
from .image_set import RawDataset, RawSplit

_NOTE = "official files, checksums verified"
_SVHN_FILES = ("train_32x32.mat", "test_32x32.mat")


def locate_cifar10(folder: Path) -> Path | None:
    """The folder, at or below ``folder``, that contains any CIFAR-10 file, or None."""
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]
    return _locate(folder, ("cifar-10-batches-py",), names)


def locate_cifar100(folder: Path) -> Path | None:
    """The folder, at or below ``folder``, that contains a file ``train``, ``test`` or ``meta``, or None."""
    return _locate(folder, ("cifar-100-python",), ("train", "test", "meta"))


def locate_svhn(folder: Path) -> Path | None:
    """``folder`` if it contains ``train_32x32.mat`` or ``test_32x32.mat``, otherwise None."""
    return _locate(folder, (), _SVHN_FILES)


def read_cifar(folder: Path, reader: str) -> RawDataset:
    """Read CIFAR-10 or CIFAR-100.

    Parameters
    ----------
    folder : Path
        Contains the unpacked files.
    reader : str
        torchvision class: ``CIFAR10`` or ``CIFAR100`` (fine labels).

    Raises
    ------
    DataError
        A file is missing or not the published one; such a file is not unpickled.
    MissingExtraError
        torchvision is not installed.
    """
    original = getattr(vision_module("torchvision.datasets"), reader)
    # torchvision expects the folder name of the archive; an empty base folder allows any name.
    cifar = type(reader, (original,), {"base_folder": ""})
    meta = [original.meta["filename"], original.meta["md5"]]
    files = [*original.train_list, *original.test_list, meta]
    train, test = (_open(cifar, folder, files, train=t) for t in (True, False))
    return RawDataset(_cifar_pixels(train), _cifar_pixels(test), tuple(train.classes))


def read_svhn(folder: Path) -> RawDataset:
    """Read SVHN's MATLAB files; digit 0 is class 0. Parameter and errors as for :func:`read_cifar`."""
    svhn = vision_module("torchvision.datasets").SVHN
    files = [svhn.split_list[part][1:] for part in ("train", "test")]
    train, test = (_open(svhn, folder, files, split=part) for part in ("train", "test"))
    return RawDataset(_svhn_pixels(train), _svhn_pixels(test))


def _locate(folder: Path, subfolders: Iterable[str], names: Iterable[str]) -> Path | None:
    """The first of ``folder`` and its ``subfolders`` that contains a file with one of the ``names``, or None."""
    for candidate in (folder, *(folder / s for s in subfolders)):
        if any((candidate / name).is_file() for name in names):
            return candidate
    return None


def _open(reader: Any, folder: Path, files: Iterable[Any], **options: Any) -> Any:
    """Call a torchvision reader and translate its errors; torchvision does not name the file at fault."""
    try:
        return reader(str(folder), download=False, **options)
    except RuntimeError as error:
        raise _diagnosis(folder, files) from error
    except ModuleNotFoundError as error:
        raise missing_vision(error) from error
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} cannot be read: {error}", hint="copy the data set again") from error


def _diagnosis(folder: Path, files: Iterable[Any]) -> DataError:
    intact = vision_module("torchvision.datasets.utils").check_integrity
    for name, md5 in files:
        if not (folder / name).is_file():
            return DataError(f"{folder} does not contain {name}", hint="unpack the official archive again")
        if not intact(str(folder / name), md5):
            return DataError(
                f"{folder / name} is not the published file: its MD5 is not {md5}",
                hint="download and unpack the official archive again",
            )
    return DataError(f"torchvision cannot read {folder}", hint="download and unpack the official archive again")


def _cifar_pixels(dataset: Any) -> RawSplit:
    # torchvision transposes the planes of the file to (N, H, W, ch).
    images = np.ascontiguousarray(dataset.data.transpose(0, 3, 1, 2))
    return RawSplit(images, np.array(dataset.targets, np.int64), _NOTE)


def _svhn_pixels(dataset: Any) -> RawSplit:
    # torchvision squeezes the labels, which makes them a scalar for a single image.
    return RawSplit(np.ascontiguousarray(dataset.data), dataset.labels.reshape(-1), _NOTE)
