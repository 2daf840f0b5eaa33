"""History of a run's rounds: ``rounds.jsonl``, one line per round, truncated to the checkpoint when a run resumes.

Checkpoints store only the number of the last round, so their size does not grow with the number of rounds.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from ..core.errors import StorageError
from . import files
from .jsonl import JsonLines

_NAME = "rounds.jsonl"


class History:
    """The entries of rounds ``1, 2 …``. Leaving the context closes the file.

    Parameters
    ----------
    folder : Path
        Run directory.
    last : int
        Round of the checkpoint that the run resumes from, 0 for a new run. Lines of later rounds are removed.

    Attributes
    ----------
    entries : list of dict
        One entry per round, in order.

    Raises
    ------
    StorageError
        A round up to ``last`` is missing from the file, or the file cannot be read or truncated.
    """

    def __init__(self, folder: Path, last: int) -> None:
        self._path = folder / _NAME
        self.entries, size = _read(self._path, last)
        self._lines: JsonLines | None = None
        try:
            if self._path.exists():
                os.truncate(self._path, size)
        except OSError as error:
            raise files.storage_error(f"cannot truncate {self._path}", error) from error

    def append(self, entry: dict[str, Any]) -> None:
        """Append the next round's entry, JSON-serializable. It survives a kill of the process, but not a power cut.

        Raises
        ------
        StorageError
            Writing fails.
        """
        self.entries.append(entry)
        if self._lines is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._lines = JsonLines(self._path)
        self._lines.append(entry)

    def sync(self) -> None:
        """Flush the lines to the disk (fsync); call it before saving the checkpoint that refers to them."""
        try:
            if self._path.exists():
                files.sync(self._path)
        except OSError as error:
            raise files.storage_error(f"cannot write {self._path}", error) from error

    def __enter__(self) -> History:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._lines is not None:
            self._lines.close()
            self._lines = None


def read_history(folder: Path, last: int) -> list[dict[str, Any]]:
    """Read the entries of rounds 1 to ``last``; errors as for :class:`History`."""
    return _read(folder / _NAME, last)[0]


def _read(path: Path, last: int) -> tuple[list[dict[str, Any]], int]:
    """Return the entries, and the total size of their lines in bytes."""
    entries: list[dict[str, Any]] = []
    size = 0
    try:
        with path.open("rb") as file:
            while len(entries) < last and (line := file.readline()):
                entry = _entry(line)
                if entry is None or entry.get("round") != len(entries) + 1:
                    break
                entries.append(entry)
                size += len(line)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise files.storage_error(f"cannot read {path}", error) from error
    if len(entries) < last:
        raise StorageError(
            f"{path} is damaged: round {len(entries) + 1} is missing, and the checkpoint is of round {last}",
            hint="restore the file if it was moved, or start a new run",
        )
    return entries, size


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    if not line.endswith(b"\n") or not isinstance(value, dict):
        return None
    return {name: math.nan if entry is None else entry for name, entry in value.items()}  # JSON has no NaN
