"""Reads image sets in the Parquet layout of the Hugging Face Hub: encoded images and integer labels."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import DataError
from ..core.extras import vision_module
from .image_decode import ImageStack
from .image_set import LARGEST_SET, RawDataset, RawSplit

_IMAGE_COLUMNS = ("img", "image")
_LABEL_COLUMNS = ("label", "fine_label")
#: Rows read at a time: a few MiB of encoded images.
_ROWS = 512
_NUMBERED = re.compile(r"-(\d{5})-of-(\d{5})\.parquet$")


def locate_parquet(folder: Path) -> Path | None:
    """``folder``, or its one subfolder, that contains ``train*.parquet``, or None.

    Raises
    ------
    DataError
        Several subfolders do.
    """
    if _files(folder, "train"):
        return folder
    subfolders = [f for f in sorted(folder.iterdir()) if f.is_dir() and _files(f, "train")]
    if len(subfolders) > 1:
        raise DataError(
            f"{folder} contains several data sets: {', '.join(f.name for f in subfolders)}",
            hint="give one of these folders",
        )
    return subfolders[0] if subfolders else None


def read_parquet(folder: Path) -> RawDataset:
    """Read ``train*.parquet`` and ``test*.parquet``.

    Parameters
    ----------
    folder : Path
        Its files have a column ``img`` or ``image`` (struct<bytes, path>) of PNG, JPEG or BMP files and a column
        ``label`` or ``fine_label`` of integers. Class names are read from the Hub's metadata, if present.

    Raises
    ------
    DataError
        A file is missing, damaged or has other columns, or an image cannot be decoded (its row is named, from 0).
    MissingExtraError
        pyarrow or pillow is not installed.
    """
    train, classes = _part(folder, "train")
    test, test_classes = _part(folder, "test")
    if test_classes and test_classes != classes:
        raise DataError(
            f"{folder}: train and test files have different class names, or the same in another order",
            hint="save both parts with the same class names",
        )
    return RawDataset(train, test, classes)


def _files(folder: Path, part: str) -> list[Path]:
    return sorted(f for f in folder.glob(f"{part}*.parquet") if f.is_file())


def _part(folder: Path, part: str) -> tuple[RawSplit, tuple[str, ...]]:
    arrow, parquet = vision_module("pyarrow"), vision_module("pyarrow.parquet")
    paths = _files(folder, part)
    if not paths:
        raise DataError(f"{folder} does not contain {part}*.parquet", hint="copy all files of the data set")
    _check_numbers(folder, paths)
    current = paths[0]
    try:
        files = [(current := p, parquet.ParquetFile(p)) for p in paths]
        _check_bytes(folder, files)
        stack = ImageStack(sum(f.metadata.num_rows for _, f in files), f"{folder}/{part}*.parquet")
        labels: list[int] = []
        for current, file in files:
            for where, encoded, label in _rows(current, file):
                stack.add(encoded, where)
                labels.append(label)
    except (arrow.ArrowException, OSError) as error:
        raise DataError(
            f"{current} is not a Parquet file, or damaged: {str(error).splitlines()[0] if str(error) else error!r}",
            hint="copy the file again",
        ) from error
    return RawSplit(stack.images(), np.array(labels, np.int64), stack.note), _class_names(files[0][1])


def _check_numbers(folder: Path, paths: list[Path]) -> None:
    """Check that no part of files named ``…-00000-of-00003.parquet`` is missing."""
    numbered = [m for p in paths if (m := _NUMBERED.search(p.name))]
    for match in numbered:
        missing = set(range(int(match[2]))) - {int(m[1]) for m in numbered}
        if missing:
            raise DataError(
                f"{folder}: part {min(missing)} of the {int(match[2])} files like {match.string} is missing",
                hint="copy all files of the data set",
            )


def _check_bytes(folder: Path, files: list[tuple[Path, Any]]) -> None:
    total = sum(f.metadata.row_group(g).total_byte_size for _, f in files for g in range(f.metadata.num_row_groups))
    if total > LARGEST_SET:
        raise DataError(f"{folder} contains {total >> 20} MiB of images", hint=f"use at most {LARGEST_SET >> 20} MiB")


def _rows(path: Path, file: Any) -> Iterator[tuple[str, bytes, int]]:
    image, label = _columns(path, file.schema_arrow)
    number = 0
    for batch in file.iter_batches(_ROWS, columns=[f"{image}.bytes", label]):
        encoded = batch.column(image).field("bytes").to_pylist()
        for content, found in zip(encoded, batch.column(label).to_pylist(), strict=True):
            where = f"{path}, row {number}"
            if content is None:
                raise DataError(f"{where}: no image bytes", hint="save the data set with its images embedded")
            if found is None or not 0 <= found < 1 << 31:
                raise DataError(f"{where}: invalid label {found}", hint="labels must be integers from 0")
            yield where, content, found
            number += 1


def _columns(path: Path, schema: Any) -> tuple[str, str]:
    """Names of the image column and the label column."""
    types = vision_module("pyarrow.types")
    image = next((c for c in _IMAGE_COLUMNS if c in schema.names), None)
    label = next((c for c in _LABEL_COLUMNS if c in schema.names), None)
    if image is None or label is None:
        missing = _IMAGE_COLUMNS if image is None else _LABEL_COLUMNS
        raise DataError(
            f"{path} has the columns {', '.join(schema.names)}, but no column {' or '.join(missing)}",
            hint="rename the column",
        )
    kind = schema.field(image).type
    content = kind.field("bytes").type if types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else None
    if content is None or not (types.is_binary(content) or types.is_large_binary(content)):
        raise DataError(
            f"{path}: the column {image} is {kind}, expected struct<bytes: binary, path: string>",
            hint="save the images as encoded files, as the Hub does",
        )
    if not types.is_integer(schema.field(label).type):
        raise DataError(
            f"{path}: the column {label} is {schema.field(label).type}, expected integers",
            hint="save labels as integers",
        )
    return image, label


def _class_names(file: Any) -> tuple[str, ...]:
    """Class names in the Hub's metadata; empty if missing or malformed."""
    label = next(c for c in _LABEL_COLUMNS if c in file.schema_arrow.names)
    try:
        names = json.loads(file.schema_arrow.metadata[b"huggingface"])["info"]["features"][label]["names"]
    except (TypeError, KeyError, ValueError, RecursionError):
        return ()
    return tuple(names) if isinstance(names, list) and all(isinstance(n, str) for n in names) else ()
