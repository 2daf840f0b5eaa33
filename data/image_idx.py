"""Reads MNIST and Fashion-MNIST from their official IDX files, gzipped or not."""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np

from ..core.errors import DataError
from .image_set import Bytes, RawDataset, RawSplit, check_size

#: Published MD5 of the gzipped files, as in torchvision.
MNIST_MD5 = {
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}
FASHION_MD5 = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
#: What is known of the origin of a file, from the best to the worst.
_NOTES = (
    "official files, checksums verified",
    "official format, unpacked: no checksum to compare",
    "official format, but the checksum is not that of the published files: compressed again, or other images",
)
#: Subfolders to search, including those of torchvision's layout.
_SUBFOLDERS = (".", "raw", "MNIST/raw", "FashionMNIST/raw")


def locate_idx(folder: Path) -> Path | None:
    """The folder, at or below ``folder``, that contains any of the four files, or None."""
    for candidate in (folder / s for s in _SUBFOLDERS):
        if any((candidate / name).is_file() or (candidate / name[:-3]).is_file() for name in MNIST_MD5):
            return candidate
    return None


def read_idx(folder: Path, checksums: Mapping[str, str]) -> RawDataset:
    """Read the four files; gzipped files are preferred, because only they have published checksums.

    Parameters
    ----------
    folder : Path
        Contains ``train-images-idx3-ubyte.gz`` … or the same files without ``.gz``.
    checksums : Mapping[str, str]
        Name of each gzipped file -> its MD5.

    Raises
    ------
    DataError
        A file is missing, does not match its header, or belongs to another set. An unknown checksum is noted, not
        refused: a file that was compressed again is as sound.
    """
    return RawDataset(_part(folder, "train", checksums), _part(folder, "t10k", checksums))


def _part(folder: Path, part: str, checksums: Mapping[str, str]) -> RawSplit:
    images, images_origin = _array(folder, f"{part}-images-idx3-ubyte.gz", 3, checksums)
    labels, labels_origin = _array(folder, f"{part}-labels-idx1-ubyte.gz", 1, checksums)
    if len(images) != len(labels):
        raise DataError(
            f"{folder} has {len(images)} {part} images and {len(labels)} labels", hint="copy its four files again"
        )
    return RawSplit(images[:, None], labels.astype(np.int64), _NOTES[max(images_origin, labels_origin)])


def _array(folder: Path, name: str, dimensions: int, checksums: Mapping[str, str]) -> tuple[Bytes, int]:
    """Read one file; returns the array, and the index in :data:`_NOTES` of what is known of its origin."""
    packed, plain = folder / name, folder / name.removesuffix(".gz")
    path = packed if packed.is_file() else plain
    try:
        if path == packed:
            origin = _origin(path, checksums)
            with gzip.open(path) as file:
                return _parse(file, path, dimensions), origin  # type: ignore[arg-type]
        with plain.open("rb") as file:
            return _parse(file, path, dimensions), 1
    except FileNotFoundError as error:
        raise DataError(f"{folder} does not contain {name}", hint="copy the four IDX files there") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}", hint="copy the file again") from error


def _origin(path: Path, checksums: Mapping[str, str]) -> int:
    """Return the index in :data:`_NOTES`; an error if the file is one of another published set."""
    found = _md5(path)
    if found == checksums[path.name]:
        return 0
    for other, published in (("MNIST", MNIST_MD5), ("Fashion-MNIST", FASHION_MD5)):
        if found in published.values():
            raise DataError(f"{path} is a file of {other}", hint="copy the files of one data set into one folder")
    return 2


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _parse(file: IO[bytes], path: Path, dimensions: int) -> Bytes:
    header = file.read(4 + 4 * dimensions)
    if len(header) < 4 + 4 * dimensions or header[:4] != bytes((0, 0, 8, dimensions)):
        magic = int.from_bytes(header[:4], "big")
        raise DataError(
            f"{path} has the magic number {magic}, expected {2048 + dimensions} for {dimensions}-dimensional bytes",
            hint="check that the file has the content that its name says",
        )
    shape = [int.from_bytes(header[i : i + 4], "big") for i in range(4, len(header), 4)]
    check_size(shape[0], tuple(shape[1:]), str(path))
    size = math.prod(shape)
    content = file.read(size)
    if len(content) < size or file.read(1):
        more = "more than " if len(content) == size else ""
        raise DataError(
            f"{path} has {more}{len(content)} bytes of data, but its header says {size}", hint="copy the file again"
        )
    return np.frombuffer(content, np.uint8).reshape(shape).copy()
