"""What is known of each round of a run: ``rounds.jsonl``, one line a round, which a resumed run cuts back.

So a checkpoint has the same size however many rounds came before: it needs to know the last one's number only.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from ..core.errors import StorageError
from . import files
from .jsonl import JsonLines

_NAME = "rounds.jsonl"


class History:
    """The entries of rounds ``1, 2 …``; a context manager, whose end closes the file.

    Parameters
    ----------
    folder : Path
        Of the run.
    last : int
        The round of the checkpoint that the run goes on from, 0 = it begins; lines of later rounds are cut off.

    Attributes
    ----------
    entries : list of dict

    Raises
    ------
    StorageError
        The file lacks one of the rounds up to ``last``, or the disk refuses.
    """

    def __init__(self, folder: Path, last: int) -> None:
        self._path = folder / _NAME
        self.entries, size = _read(self._path, last)
        self._lines: JsonLines | None = None
        try:
            if self._path.exists():
                os.truncate(self._path, size)
        except OSError as error:
            raise files.storage_error(f"cannot cut {self._path}", error) from error

    def append(self, entry: dict[str, Any]) -> None:
        """Add the next round's entry, JSON-able; a kill -9 can no longer take it, a power cut can.

        Raises
        ------
        StorageError
            The disk refuses.
        """
        self.entries.append(entry)
        if self._lines is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._lines = JsonLines(self._path, exact=True)
        self._lines.append(entry)

    def sync(self) -> None:
        """Make the lines survive a power cut; before the checkpoint that counts on them."""
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
    """The entries of rounds 1 to ``last``; same errors as of :class:`History`."""
    return _read(folder / _NAME, last)[0]


def _read(path: Path, last: int) -> tuple[list[dict[str, Any]], int]:
    """Entries, and the bytes that their lines take."""
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
            f"{path} is damaged: it lacks round {len(entries) + 1}, and the checkpoint is of round {last}",
            hint="put the file back if it was moved away, or begin the run anew",
        )
    return entries, size


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if line.endswith(b"\n") and isinstance(value, dict) else None
