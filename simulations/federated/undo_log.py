"""Rows of clients' memories as they were before a round changed them, so that a killed simulation can take them back.

A round costs the rows of its cohort, however large the population: nothing is ever copied whole. Every process appends
to files of its own, one per checkpoint.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...runs import files

_HEAD = struct.Struct("<QQQ")  # round, client, whether it was known
_PATTERN = "undo-*"
#: Files that a process keeps: since the newest checkpoint, and since the one before, should the newest be damaged.
_KEPT = 2


class Record(NamedTuple):
    """Where a client's rows lie, as they were before round ``round_index``."""

    round_index: int
    client: int
    known: bool
    path: Path
    offset: int


class UndoLog:
    """Writes what one process changes.

    Parameters
    ----------
    folder : Path
        All processes' files lie there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._mark = folder, uuid.uuid4().hex
        self._mine: list[Path] = []
        self._file: IO[bytes] | None = None

    def write(self, round_index: int, client: int, rows: Sequence[NDArray[np.float32]] | None) -> None:
        """Note a client's rows before round ``round_index`` changes them; None where it was unknown.

        Raises
        ------
        StorageError
            The disk refuses.
        """
        try:
            if self._file is None:
                self._mine.append(self._folder / f"undo-{round_index:012}-{self._mark}")
                self._file = self._mine[-1].open("ab")
            self._file.write(_HEAD.pack(round_index, client, rows is not None))
            for row in rows or ():
                self._file.write(row.data)
            self._file.flush()  # before the rows change: the system holds both once this process is killed
        except OSError as error:
            raise files.storage_error(f"cannot write to {self._folder}", error) from error

    def next_file(self) -> None:
        """A checkpoint was saved: begin another file, and drop those that no checkpoint needs any more."""
        if self._file is None:
            return
        self._file.close()
        self._file = None
        while len(self._mine) >= _KEPT:
            self._mine.pop(0).unlink(missing_ok=True)


def records(folder: Path, row_bytes: int, after: int) -> Iterator[Record]:
    """All records of rounds later than ``after``, the latest round's first; one that was cut short is left out.

    A client's rows do not change before its record is whole.
    """
    found = [r for path in folder.glob(_PATTERN) for r in _read(path, row_bytes) if r.round_index > after]
    yield from sorted(found, key=lambda record: -record.round_index)


def clear(folder: Path) -> None:
    """Remove all processes' files."""
    for path in folder.glob(_PATTERN):
        path.unlink()


def _read(path: Path, row_bytes: int) -> Iterator[Record]:
    size, offset = path.stat().st_size, 0
    with path.open("rb") as file:
        while offset + _HEAD.size <= size:
            file.seek(offset)
            round_index, client, known = _HEAD.unpack(file.read(_HEAD.size))
            end = offset + _HEAD.size + (row_bytes if known else 0)
            if end > size:
                return
            yield Record(round_index, client, bool(known), path, offset + _HEAD.size)
            offset = end
