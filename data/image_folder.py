"""Reads image folders: ``train/<class>/*.png`` and ``test/<class>/*.png``."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..core.errors import DataError
from .image_decode import SUFFIXES, ImageStack
from .image_set import RawDataset, RawSplit

#: Files and folders that operating systems leave behind.
_SYSTEM = frozenset({"thumbs.db", "desktop.ini", "__macosx"})


def locate_folder(folder: Path) -> Path | None:
    """``folder`` if it contains a folder ``train``, otherwise None."""
    return folder if (folder / "train").is_dir() else None


def read_folder(folder: Path) -> RawDataset:
    """Read all images below ``train`` and ``test``, ordered by class and file name.

    Classes are the folders in ``train`` that contain images, in alphabetical order, or in numerical order if all names
    are numbers. Hidden files, files of operating systems (``Thumbs.db`` …) and empty folders are left out; the notes
    name the latter.

    Raises
    ------
    DataError
        A folder is missing or empty, ``test`` has a class that ``train`` lacks, or a file is not a sound image.
    MissingExtraError
        pillow is not installed.
    """
    classes, empty = _class_folders(folder / "train")
    unknown = sorted(set(_class_folders(folder / "test")[0]) - set(classes))
    if unknown:
        raise DataError(
            f"{folder}/test has the class {unknown[0]}, which {folder}/train does not have",
            hint="use the same class folders in both",
        )
    note = f"; without images, and therefore no classes: {', '.join(empty[:8])}" if empty else ""
    return RawDataset(_part(folder / "train", classes, note), _part(folder / "test", classes), classes)


def _class_folders(part: Path) -> tuple[tuple[str, ...], list[str]]:
    """Return the folders that contain images, in the order of classes, and those that are empty."""
    if not part.is_dir():
        raise DataError(f"missing folder {part}", hint="lay the images out as train/<class>/ and test/<class>/")
    names = sorted(f.name for f in part.iterdir() if f.is_dir() and not _ignored(f))
    empty = [name for name in names if not _images(part / name)]
    names = [name for name in names if name not in empty]
    if not names:
        raise DataError(
            f"{part} contains no class folders with images", hint="lay the images out as train/<class>/*.png"
        )
    if all(n.isascii() and n.isdigit() for n in names):
        names.sort(key=lambda n: (int(n), n))
    return tuple(names), empty


def _part(part: Path, classes: tuple[str, ...], note: str = "") -> RawSplit:
    files = [(file, label) for label, name in enumerate(classes) for file in _images(part / name)]
    stack = ImageStack(len(files), str(part))
    for file, _ in files:
        try:
            content = file.read_bytes()
        except OSError as error:
            raise DataError(f"{file} cannot be read: {error.strerror}", hint="check its permissions") from error
        stack.add(content, str(file))
    return RawSplit(stack.images(), np.array([label for _, label in files], np.int64), stack.note + note)


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    files = sorted(f for f in folder.iterdir() if not _ignored(f))
    for file in files:
        if file.suffix.lower() not in SUFFIXES or not file.is_file():
            raise DataError(
                f"{file} is not an image file ({', '.join(SUFFIXES)})", hint="convert it to PNG, or remove it"
            )
    return files


def _ignored(path: Path) -> bool:
    """Whether a file or folder is hidden, or was left there by an operating system."""
    return path.name.startswith(".") or path.name.lower() in _SYSTEM
