"""What a run's data are, as JSON files in its directory: who holds which images, and which virtual data there are."""

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
    """Write ``partition.json``, which reads back as a partition, and ``partition-report.json``; once.

    Raises
    ------
    StorageError
        The disk refuses.
    """
    if not (folder / REPORT).exists():
        folder.mkdir(parents=True, exist_ok=True)
        save_partition(folder / PARTITION, partition, labels, parts)
        write_json(folder / REPORT, report(labels, parts, classes).to_json())


def describe_virtual(folder: Path, recipe: VirtualRecipe, digest: str, *, shipped: bool) -> None:
    """Write ``virtual.json``: by what the virtual data are made and told apart; once. Same errors."""
    if not (folder / VIRTUAL).exists():
        folder.mkdir(parents=True, exist_ok=True)
        found = {"recipe": recipe.model_dump(mode="json"), "sha256": digest, "images": recipe.count}
        write_json(folder / VIRTUAL, {**found, "bytes": recipe.nbytes, "distribution": "ship" if shipped else "seed"})
