"""CIFAR-10, CIFAR-100 and SVHN in their official files, by torchvision's readers.

The CIFAR files are pickles. torchvision compares each with its published checksum before it opens it; no other file of
that kind is ever opened.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import DataError
from ..core.extras import missing_vision, vision_module
from .image_set import Pixels, Reading

_NOTE = "official files, checksums verified"
_SVHN_FILES = ("train_32x32.mat", "test_32x32.mat")


def locate_cifar10(folder: Path) -> Path | None:
    """The folder, at or below ``folder``, that holds ``data_batch_1`` … or any of its neighbors."""
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]
    return _holder(folder, ("cifar-10-batches-py",), names)


def locate_cifar100(folder: Path) -> Path | None:
    """The folder, at or below ``folder``, that holds the files ``train``, ``test`` or ``meta``."""
    return _holder(folder, ("cifar-100-python",), ("train", "test", "meta"))


def locate_svhn(folder: Path) -> Path | None:
    """``folder`` if it holds ``train_32x32.mat`` or ``test_32x32.mat``."""
    return _holder(folder, (), _SVHN_FILES)


def read_cifar(folder: Path, reader: str) -> Reading:
    """Read the pickles of CIFAR.

    Parameters
    ----------
    folder : Path
        Holds the files themselves.
    reader : str
        ``CIFAR10`` or ``CIFAR100`` (fine labels).

    Raises
    ------
    DataError
        A file is missing or not the published one; nothing of it was read then.
    MissingExtraError
        torchvision is not installed.
    """
    original = getattr(vision_module("torchvision.datasets"), reader)
    # The files may be in a folder of any name; the original knows only the archive's.
    cifar = type(reader, (original,), {"base_folder": ""})
    meta = [original.meta["filename"], original.meta["md5"]]
    files = [*original.train_list, *original.test_list, meta]
    train, test = (_open(cifar, folder, files, train=t) for t in (True, False))
    return Reading(_cifar_pixels(train), _cifar_pixels(test), tuple(train.classes))


def read_svhn(folder: Path) -> Reading:
    """Read SVHN's Matlab files; digit 0 is class 0. Parameter and errors as for :func:`read_cifar`."""
    svhn = vision_module("torchvision.datasets").SVHN
    files = [svhn.split_list[part][1:] for part in ("train", "test")]
    train, test = (_open(svhn, folder, files, split=part) for part in ("train", "test"))
    return Reading(_svhn_pixels(train), _svhn_pixels(test))


def _holder(folder: Path, below: Iterable[str], names: Iterable[str]) -> Path | None:
    for place in (folder, *(folder / b for b in below)):
        if any((place / name).is_file() for name in names):
            return place
    return None


def _open(reader: Any, folder: Path, files: Iterable[Any], **options: Any) -> Any:
    """Call a torchvision reader; it refuses without saying which file is wrong, so that is found out here."""
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
            return DataError(f"{folder} holds no {name}", hint="unpack the official archive again")
        if not intact(str(folder / name), md5):
            return DataError(
                f"{folder / name} is not the published file: its MD5 is not {md5}",
                hint="download and unpack the official archive again",
            )
    return DataError(f"torchvision cannot read {folder}", hint="download and unpack the official archive again")


def _cifar_pixels(dataset: Any) -> Pixels:
    # torchvision turns the planes of the file into (N, H, W, ch); turned back here.
    images = np.ascontiguousarray(dataset.data.transpose(0, 3, 1, 2))
    return Pixels(images, np.array(dataset.targets, np.int64), _NOTE)


def _svhn_pixels(dataset: Any) -> Pixels:
    # torchvision squeezes the labels: of a single image a scalar would be left.
    return Pixels(np.ascontiguousarray(dataset.data), dataset.labels.reshape(-1), _NOTE)
