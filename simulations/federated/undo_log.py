"""An undo log of client states: the rows of a client as they were before a round changed them.

With it, an interrupted simulation restores the client states of its last checkpoint. A round appends only the rows of
its cohort, whatever the size of the population. Each process appends to its own files, one per checkpoint.
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

_HEADER = struct.Struct("<QQQ")  # round, client, whether the client had a state
_PATTERN = "undo-*"
#: Files that a process keeps: since the newest checkpoint, and since the previous one in case the newest is damaged.
_FILES_TO_KEEP = 2


class UndoRecord(NamedTuple):
    """Location of a client's rows as they were before round ``round_index``.

    Attributes
    ----------
    round_index, client : int
    known : bool
        Whether the client had a state. If not, there are no rows.
    path : Path
    offset : int
        Position of the rows in the file, in bytes.
    """

    round_index: int
    client: int
    known: bool
    path: Path
    offset: int


class UndoLog:
    """Appends the undo records of one process.

    Parameters
    ----------
    folder : Path
        Directory of the files of all processes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._suffix = folder, uuid.uuid4().hex
        self._own_files: list[Path] = []
        self._file: IO[bytes] | None = None

    def append(self, round_index: int, client: int, rows: Sequence[NDArray[np.float32]] | None) -> None:
        """Append a client's rows before round ``round_index`` changes them; None if the client has no state yet.

        Raises
        ------
        StorageError
            The file cannot be written.
        """
        try:
            if self._file is None:
                self._own_files.append(self._folder / f"undo-{round_index:012}-{self._suffix}")
                self._file = self._own_files[-1].open("ab")
            self._file.write(_HEADER.pack(round_index, client, rows is not None))
            for row in rows or ():
                self._file.write(row.data)
            self._file.flush()  # before the rows change, so that the record survives if this process is killed
        except OSError as error:
            raise files.storage_error(f"cannot write to {self._folder}", error) from error

    def rotate(self) -> None:
        """Start a new file after a checkpoint, and delete files that no checkpoint needs any more."""
        if self._file is None:
            return
        self._file.close()
        self._file = None
        while len(self._own_files) >= _FILES_TO_KEEP:
            self._own_files.pop(0).unlink(missing_ok=True)


def records(folder: Path, row_bytes: int, after: int) -> Iterator[UndoRecord]:
    """Yield the records of rounds later than ``after``, latest round first.

    An incomplete record is skipped: the client's rows change only after the record is complete.
    """
    entries = [r for path in folder.glob(_PATTERN) for r in _read(path, row_bytes) if r.round_index > after]
    yield from sorted(entries, key=lambda record: -record.round_index)


def clear(folder: Path) -> None:
    """Delete the files of all processes."""
    for path in folder.glob(_PATTERN):
        path.unlink()


def _read(path: Path, row_bytes: int) -> Iterator[UndoRecord]:
    size, offset = path.stat().st_size, 0
    with path.open("rb") as file:
        while offset + _HEADER.size <= size:
            file.seek(offset)
            round_index, client, known = _HEADER.unpack(file.read(_HEADER.size))
            end = offset + _HEADER.size + (row_bytes if known else 0)
            if end > size:
                return
            yield UndoRecord(round_index, client, bool(known), path, offset + _HEADER.size)
            offset = end
