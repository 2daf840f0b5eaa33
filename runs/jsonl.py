"""Files of JSON lines: appended line by line, readable whatever moment their writer was killed at."""

from __future__ import annotations

import json
import logging
import math
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..core.errors import StorageError
from . import files

_log = logging.getLogger(__name__)


class JsonLines:
    """Appends objects to a file, one line each; any thread may.

    Every line is handed to the system in one go, so a killed process leaves at most one broken line, the last. A line
    that an earlier process left unfinished is ended first. Not-a-number and infinities, which JSON lacks, become
    ``null``.

    Parameters
    ----------
    path : Path
    exact : bool
        They are written as Python writes and reads them instead, for files of our own.

    Raises
    ------
    StorageError
        The file cannot be opened.
    """

    def __init__(self, path: Path, *, exact: bool = False) -> None:
        self._path, self._exact = path, exact
        self._lock = threading.Lock()
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            size = os.fstat(self._file).st_size
            self._broken = size > 0 and os.pread(self._file, 1, size - 1) != b"\n"
        except OSError as error:
            raise files.storage_error(f"cannot open {path}", error) from error

    def append(self, value: Mapping[str, Any]) -> None:
        """Append one object.

        Raises
        ------
        StorageError
            The disk refuses, or the file is closed.
        """
        value = value if self._exact else finite(value)
        line = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            if self._file < 0:
                raise StorageError(f"{self._path} is closed; nothing can be written any more")
            try:
                rest = b"\n" + line if self._broken else line
                self._broken = True
                while rest:
                    rest = rest[os.write(self._file, rest) :]
                self._broken = False
            except OSError as error:
                raise files.storage_error(f"cannot write {self._path}", error) from error

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file, oldest first; broken lines are left out, a missing file is empty.

    Raises
    ------
    StorageError
        The file is there and cannot be read.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    value = json.loads(line)
                except ValueError:
                    value = None
                if isinstance(value, dict):
                    yield value
                elif line.strip():
                    _log.info("%s: line %d is broken; its writer was killed", path, number)
    except FileNotFoundError:
        return
    except OSError as error:
        raise files.storage_error(f"cannot read {path}", error) from error


def finite(value: Any) -> Any:
    """``value`` with each not-a-number and infinity replaced by None, at any depth."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return value
