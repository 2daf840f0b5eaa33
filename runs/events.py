"""Events of a run: ``events.jsonl``, with lines such as ``{"time": …, "kind": "epoch", "epoch": 1}``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import jsonl


class EventsWriter:
    """Appends to ``events.jsonl``.

    Parameters
    ----------
    path : Path
        The file.

    Raises
    ------
    StorageError
        The file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._lines = jsonl.JsonLines(path)

    def write(self, kind: str, /, **fields: Any) -> None:
        """Record an event with JSON-serializable fields; ``time`` and ``kind`` are reserved.

        Raises
        ------
        StorageError
            Writing fails.
        """
        self._lines.append({**fields, "time": time.time(), "kind": kind})

    def close(self) -> None:
        """Close the file."""
        self._lines.close()


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of an ``events.jsonl``, oldest first.

    Raises
    ------
    StorageError
        The file exists and cannot be read.
    """
    return jsonl.read(path)
