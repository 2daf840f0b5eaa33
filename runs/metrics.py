"""Figures of a run over its steps: ``metrics.jsonl``, lines of ``{"step": 10, "time": …, "loss": 0.5}``."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from . import jsonl


class MetricsWriter:
    """Appends to ``metrics.jsonl``.

    Parameters
    ----------
    path : Path
        The file.

    Raises
    ------
    StorageError
        It cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._lines = jsonl.JsonLines(path)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record named figures at ``step``; one that is not finite is written as ``null``.

        Raises
        ------
        StorageError
            The disk refuses.
        """
        figures = {name: float(value) for name, value in values.items()}
        self._lines.append({"step": int(step), "time": time.time(), **figures})

    def close(self) -> None:
        """Close the file."""
        self._lines.close()


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``, oldest first.

    A step that was done again after a restart appears again, with the later time.

    Raises
    ------
    StorageError
        The file is there and cannot be read.
    """
    return jsonl.read(path)
