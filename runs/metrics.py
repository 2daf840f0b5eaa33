"""Figures of a run over its steps: ``metrics.jsonl``, lines of ``{"step": 10, "time": …, "loss": 0.5}``."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from . import jsonl
from .sinks import Sinks


class MetricsWriter:
    """Appends to ``metrics.jsonl``.

    Parameters
    ----------
    path : Path
        The file.
    sinks : Sinks, optional
        Where the figures go too.

    Raises
    ------
    StorageError
        It cannot be opened.
    """

    def __init__(self, path: Path, sinks: Sinks | None = None) -> None:
        self._path = path
        self._lines, self._sinks = jsonl.JsonLines(path), sinks
        self._node_lines: jsonl.JsonLines | None = None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record named figures at ``step``; one that is not finite is written as ``null``.

        Raises
        ------
        StorageError
            The disk refuses.
        """
        figures = {name: float(value) for name, value in values.items()}
        now = time.time()
        self._lines.append({"step": int(step), "time": now, **figures})
        if self._sinks is not None:
            finite = {name: value for name, value in figures.items() if math.isfinite(value)}
            self._sinks.write(int(step), now, finite)

    def write_node(self, node: str, step: int, values: Mapping[str, float]) -> None:
        """Record figures that a node program reported, in ``node_metrics.jsonl``; sinks get them as ``NODE/NAME``.

        Raises
        ------
        StorageError
            The disk refuses.
        """
        if self._node_lines is None:
            self._node_lines = jsonl.JsonLines(self._path.with_name("node_metrics.jsonl"))
        figures = {name: float(value) for name, value in values.items()}
        now = time.time()
        self._node_lines.append({"node": node, "step": int(step), "time": now, **figures})
        if self._sinks is not None:
            finite = {f"{node}/{name}": value for name, value in figures.items() if math.isfinite(value)}
            self._sinks.write(int(step), now, finite)

    def close(self) -> None:
        """Close the files and the sinks."""
        if self._node_lines is not None:
            self._node_lines.close()
        self._lines.close()
        if self._sinks is not None:
            self._sinks.close()


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``, oldest first.

    A step that was done again after a restart appears again, with the later time.

    Raises
    ------
    StorageError
        The file is there and cannot be read.
    """
    return jsonl.read(path)
