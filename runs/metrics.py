"""Metrics of a run: ``metrics.jsonl``, with lines such as ``{"step": 10, "time": …, "loss": 0.5}``."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from . import jsonl
from .sinks import Sinks


class MetricsWriter:
    """Appends to ``metrics.jsonl`` and ``node_metrics.jsonl``.

    Parameters
    ----------
    path : Path
        The file ``metrics.jsonl``; ``node_metrics.jsonl`` is created next to it when a node reports metrics.
    sinks : Sinks, optional
        Additional destinations.

    Raises
    ------
    StorageError
        The file cannot be opened.
    """

    def __init__(self, path: Path, sinks: Sinks | None = None) -> None:
        self._path = path
        self._lines, self._sinks = jsonl.JsonLines(path), sinks
        self._node_lines: jsonl.JsonLines | None = None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record named metrics at ``step``; non-finite values are written as ``null``.

        Raises
        ------
        StorageError
            Writing fails.
        """
        metrics = {name: float(value) for name, value in values.items()}
        now = time.time()
        self._lines.append({"step": int(step), "time": now, **metrics})
        if self._sinks is not None:
            finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
            self._sinks.write(int(step), now, finite)

    def write_node(self, node: str, step: int, values: Mapping[str, float]) -> None:
        """Record a node program's metrics in ``node_metrics.jsonl``; sinks receive them as ``NODE/NAME``.

        Raises
        ------
        StorageError
            Writing fails.
        """
        if self._node_lines is None:
            self._node_lines = jsonl.JsonLines(self._path.with_name("node_metrics.jsonl"))
        metrics = {name: float(value) for name, value in values.items()}
        now = time.time()
        self._node_lines.append({**metrics, "node": node, "step": int(step), "time": now})
        if self._sinks is not None:
            finite = {f"{node}/{name}": value for name, value in metrics.items() if math.isfinite(value)}
            self._sinks.write(int(step), now, finite)

    def close(self) -> None:
        """Close the files and the sinks."""
        if self._node_lines is not None:
            self._node_lines.close()
        self._lines.close()
        if self._sinks is not None:
            self._sinks.close()


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a ``metrics.jsonl``, oldest first.

    Steps that were repeated after a restart appear once per attempt, with different times.

    Raises
    ------
    StorageError
        The file exists and cannot be read.
    """
    return jsonl.read(path)
