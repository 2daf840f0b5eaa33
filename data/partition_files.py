"""Saves and loads partitions as JSON files that carry a digest of the labels they were drawn for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from ..core.errors import DataError
from ..core.files import write_file
from .partition import Partition
from .sampling import IntArray

#: Largest file that is read, in bytes; 10 million indices take about 90 MB.
_LARGEST_FILE = 256 << 20


class _Saved(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal["farshore-partition-1"] = "farshore-partition-1"
    partition: Partition
    samples: int
    labels_sha256: str
    clients: list[list[int]]


def save_partition(path: Path, partition: Partition, labels: npt.ArrayLike, parts: Sequence[IntArray]) -> None:
    """Write configuration and indices atomically.

    Parameters
    ----------
    path : Path
        Replaced if it exists.
    partition : Partition
        Configuration that ``parts`` were drawn with.
    labels : int array (N,)
        Labels that ``parts`` were drawn for; only their digest is written.
    parts : sequence of int array
        Indices per client.

    Raises
    ------
    StorageError
        The file cannot be written.
    """
    saved = _Saved(
        partition=partition,
        samples=len(np.asarray(labels)),
        labels_sha256=_digest(labels),
        clients=[[int(i) for i in part] for part in parts],
    )
    write_file(path, saved.model_dump_json().encode())


def load_partition(path: Path, labels: npt.ArrayLike) -> tuple[Partition, list[IntArray]]:
    """Load a partition saved by :func:`save_partition` and check it against ``labels``.

    Returns
    -------
    partition : Partition
        The configuration.
    parts : list of int64 array
        Indices per client.

    Raises
    ------
    DataError
        The file is missing, damaged, belongs to other labels, or has an index twice.
    """
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise DataError(f"the partition {path} is larger than {_LARGEST_FILE >> 20} MiB", hint="save it again")
        saved = _Saved.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"the partition {path} cannot be read: {error.strerror}", hint="check the path") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise DataError(f"the partition {path} is invalid: {where}: {first['msg']}", hint="save it again") from error
    if saved.samples != len(np.asarray(labels)) or saved.labels_sha256 != _digest(labels):
        raise DataError(
            f"the partition {path} was drawn for other labels ({saved.samples} samples)",
            hint="use the data set that it was drawn for, or draw a new partition",
        )
    parts = _indices(path, saved)
    return saved.partition, parts


def _indices(path: Path, saved: _Saved) -> list[IntArray]:
    try:
        parts = [np.array(c, np.int64) for c in saved.clients]
    except OverflowError:
        parts = [np.array([-1], np.int64)]
    indices = np.concatenate([np.empty(0, np.int64), *parts])
    if len(indices) and not (indices.min() >= 0 and indices.max() < saved.samples):
        raise DataError(f"the partition {path} has an index outside its {saved.samples} samples", hint="save it again")
    if len(np.unique(indices)) != len(indices):
        raise DataError(f"the partition {path} assigns a sample twice", hint="save it again")
    return parts


def _digest(labels: npt.ArrayLike) -> str:
    return hashlib.sha256(np.asarray(labels).astype("<i8").tobytes()).hexdigest()
