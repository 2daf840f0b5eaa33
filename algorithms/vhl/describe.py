"""Writes JSON files that describe a run's data: the partition of the images and the virtual data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...data.partition import Partition
from ...data.partition_files import save_partition
from ...data.partition_report import report
from ...runs.files import write_json
from .recipe import VirtualRecipe

PARTITION, REPORT, VIRTUAL = "partition.json", "partition-report.json", "virtual.json"


def describe_partition(
    folder: Path, partition: Partition, labels: NDArray[np.int64], parts: Sequence[NDArray[np.int64]], classes: int
) -> None:
    """Write ``partition.json`` (see :mod:`~farshore.data.partition_files`) and ``partition-report.json``.

    Existing files are kept.

    Raises
    ------
    StorageError
        A file cannot be written.
    """
    if not (folder / REPORT).exists():
        folder.mkdir(parents=True, exist_ok=True)
        save_partition(folder / PARTITION, partition, labels, parts)
        write_json(folder / REPORT, report(labels, parts, classes).to_json())


def describe_virtual(folder: Path, recipe: VirtualRecipe, digest: str, *, shipped: bool) -> None:
    """Write ``virtual.json``: recipe, SHA-256, size and distribution; an existing file is kept. Same errors."""
    if not (folder / VIRTUAL).exists():
        folder.mkdir(parents=True, exist_ok=True)
        content = {"recipe": recipe.model_dump(mode="json"), "sha256": digest, "images": recipe.count}
        write_json(folder / VIRTUAL, {**content, "bytes": recipe.nbytes, "distribution": "ship" if shipped else "seed"})
