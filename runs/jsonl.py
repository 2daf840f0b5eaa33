"""JSON Lines files: thread-safe appending, reading that skips broken lines, following a growing file."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..core.errors import StorageError
from ..core.json_text import to_json
from . import files

_log = logging.getLogger(__name__)


class JsonLines:
    """Appends objects to a file, one line each. Thread-safe.

    Each line is written with one system call if possible, so a killed process leaves at most one broken line, the last.
    A line that an earlier process left incomplete is terminated first. Non-finite numbers are written as ``null``.

    Parameters
    ----------
    path : Path

    Raises
    ------
    StorageError
        The file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            size = os.fstat(self._file).st_size
            self._incomplete = size > 0 and os.pread(self._file, 1, size - 1) != b"\n"
        except OSError as error:
            raise files.storage_error(f"cannot open {path}", error) from error

    def append(self, value: Mapping[str, Any]) -> None:
        """Append one object.

        Raises
        ------
        StorageError
            Writing fails, or the file is closed.
        """
        line = _line(value)
        with self._lock:
            if self._file < 0:
                raise StorageError(f"cannot write {self._path}: the file is closed")
            try:
                remaining = b"\n" + line if self._incomplete else line
                self._incomplete = True
                while remaining:
                    remaining = remaining[os.write(self._file, remaining) :]
                self._incomplete = False
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
    """Yield the objects of a file, oldest first. Broken lines are skipped; a missing file is empty.

    Raises
    ------
    StorageError
        The file exists and cannot be read.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                value = _parsed(line)
                if isinstance(value, dict):
                    yield value
                elif line.strip():
                    _log.info("%s: skipped line %d, which is incomplete (its writer was killed)", path, number)
    except FileNotFoundError:
        return
    except OSError as error:
        raise files.storage_error(f"cannot read {path}", error) from error


def filter_file(path: Path, predicate: Callable[[Mapping[str, Any]], bool]) -> None:
    """Remove objects for which ``predicate`` is false from a file that has no writer; a missing file stays missing.

    Raises
    ------
    StorageError
        The file cannot be read or written; it is unchanged.
    """
    if not path.exists():
        return
    lines = [_line(value) for value in read(path) if predicate(value)]
    files.replace(path, lambda temporary: temporary.write_bytes(b"".join(lines)))


def _line(value: Mapping[str, Any]) -> bytes:
    return to_json(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


class Tail:
    """Follows a growing file: each call of :meth:`read_new` returns the objects appended since the previous one.

    Parameters
    ----------
    path : Path
        May not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read_new(self, limit: int = 8 << 20) -> list[dict[str, Any]]:
        """Return the objects of complete new lines, at most ``limit`` bytes of them; broken lines are skipped.

        Raises
        ------
        StorageError
            The file exists and cannot be read.
        """
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                block = file.read(limit)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise files.storage_error(f"cannot read {self._path}", error) from error
        complete = block[: block.rfind(b"\n") + 1]
        self._offset += len(complete)
        return [value for line in complete.splitlines() if isinstance(value := _parsed(line), dict)]


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
