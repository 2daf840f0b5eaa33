"""Files of JSON lines: appended line by line, readable whatever moment their writer was killed at."""

from __future__ import annotations

import json
import logging
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping
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
        line = _line(value, exact=self._exact)
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
                value = _parsed(line)
                if isinstance(value, dict):
                    yield value
                elif line.strip():
                    _log.info("%s: line %d is broken; its writer was killed", path, number)
    except FileNotFoundError:
        return
    except OSError as error:
        raise files.storage_error(f"cannot read {path}", error) from error


def keep(path: Path, wanted: Callable[[Mapping[str, Any]], bool]) -> None:
    """Leave only the wanted objects in a file that nobody appends to now; a missing file stays missing.

    Raises
    ------
    StorageError
        The file cannot be read or written; it is then as it was.
    """
    if not path.exists():
        return
    lines = [_line(value) for value in read(path) if wanted(value)]
    files.replace(path, lambda temporary: temporary.write_bytes(b"".join(lines)))


def _line(value: Mapping[str, Any], *, exact: bool = False) -> bytes:
    told = value if exact else finite(value)
    return json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


class Tail:
    """The objects that were appended to a file since the last look; broken lines are left out.

    Parameters
    ----------
    path : Path
        Need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def fresh(self, limit: int = 8 << 20) -> list[dict[str, Any]]:
        """Whole lines not yet given, at most about ``limit`` bytes of them.

        Raises
        ------
        StorageError
            The file is there and cannot be read.
        """
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                block = file.read(limit)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise files.storage_error(f"cannot read {self._path}", error) from error
        whole = block[: block.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [value for line in whole.splitlines() if isinstance(value := _parsed(line), dict)]


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def finite(value: Any) -> Any:
    """``value`` with each not-a-number and infinity replaced by None, at any depth."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return value
