"""Append-only streams of records, for state that only grows: replay memories, detections, measurements.

A stream is one file, ``NAME.records``: eight bytes of magic, then for each record its length and its XXH3-64 checksum
(8 bytes each, little-endian) and the record itself, named arrays in the safetensors format.
"""

from __future__ import annotations

import os
import re
import struct
import threading
from array import array
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ..core.errors import StorageError
from . import files

MAGIC = b"FSREC1\n\0"
_HEAD = struct.Struct("<QQ")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
#: Longest record, in bytes: a length beyond it means a damaged file.
MAX_RECORD_BYTES = 1 << 31


class RecordStream:
    """One stream; its file is opened for reading and appending by one process at a time. Thread-safe.

    Records that were cut short by a kill are dropped when the stream is opened.

    Parameters
    ----------
    path : Path
        Created when the first record is appended.

    Raises
    ------
    StorageError
        The file cannot be read, or is not a stream.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._starts = array("Q")  # where each record's head begins
        self._end = 0
        self._file: int | None = None
        if path.exists():
            self._open()
            self._scan()

    def __len__(self) -> int:
        """Number of records."""
        return len(self._starts)

    def append(self, tensors: Mapping[str, NDArray[Any]]) -> int:
        """Append a record; it survives a kill of the process from :meth:`flush` on.

        Parameters
        ----------
        tensors : Mapping[str, array]
            Any shape; dtypes of NumPy's own numbers and bool.

        Returns
        -------
        int
            The record's index.

        Raises
        ------
        StorageError
            The disk refuses it; the stream is as before.
        """
        body = save({name: np.asarray(value, order="C") for name, value in tensors.items()})
        record = _HEAD.pack(len(body), xxhash.xxh3_64_intdigest(body)) + body
        with self._lock:
            try:
                if self._file is None:
                    self._path.parent.mkdir(parents=True, exist_ok=True)
                    self._open()
                    self._write(MAGIC)
                self._write(record)
            except OSError as error:
                with suppress(OSError):
                    os.ftruncate(self._descriptor(), self._end)
                raise files.storage_error(f"cannot append to {self._path}", error) from error
            self._starts.append(self._end - len(record))
            return len(self._starts) - 1

    def read(self, index: int) -> dict[str, NDArray[Any]]:
        """The record at ``index``, from 0.

        Raises
        ------
        IndexError
            There is no such record.
        StorageError
            The record is damaged.
        """
        with self._lock:
            if not 0 <= index < len(self._starts):
                raise IndexError(f"{self._path.name} has {len(self._starts)} records, not {index + 1}")
            start = self._starts[index]
            length, digest = _HEAD.unpack(os.pread(self._descriptor(), _HEAD.size, start))
            body = os.pread(self._descriptor(), length, start + _HEAD.size)
        if len(body) != length or xxhash.xxh3_64_intdigest(body) != digest:
            raise StorageError(f"record {index} of {self._path} is damaged", hint="restore the file from a backup")
        try:
            return load(body)
        except SafetensorError as error:
            raise StorageError(f"record {index} of {self._path} is damaged: {error}") from error

    def __iter__(self) -> Iterator[dict[str, NDArray[Any]]]:
        """All records that are there when the iteration begins, oldest first."""
        for index in range(len(self)):
            yield self.read(index)

    def flush(self) -> None:
        """Make all records durable.

        Raises
        ------
        StorageError
            The disk refuses.
        """
        with self._lock:
            if self._file is not None:
                try:
                    os.fsync(self._file)
                except OSError as error:
                    raise files.storage_error(f"cannot write {self._path}", error) from error

    def truncate(self, length: int) -> None:
        """Drop all records from index ``length`` on.

        Raises
        ------
        StorageError
            The stream has fewer records, or the file cannot be changed.
        """
        with self._lock:
            if length > len(self._starts):
                raise StorageError(
                    f"{self._path} has {len(self._starts)} records where the checkpoint needs {length}",
                    hint="resume from an older checkpoint, or start the run from the beginning",
                )
            if length == len(self._starts):
                return
            end = self._starts[length]
            try:
                os.ftruncate(self._descriptor(), end)
                os.fsync(self._descriptor())
            except OSError as error:
                raise files.storage_error(f"cannot shorten {self._path}", error) from error
            del self._starts[length:]
            self._end = end

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._file is not None:
                os.close(self._file)
                self._file = None

    def _descriptor(self) -> int:
        if self._file is None:
            self._open()
        assert self._file is not None
        return self._file

    def _open(self) -> None:
        try:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise files.storage_error(f"cannot open {self._path}", error) from error

    def _write(self, data: bytes) -> None:
        written = 0
        while written < len(data):
            written += os.pwrite(self._descriptor(), data[written:], self._end + written)
        self._end += written

    def _scan(self) -> None:
        """Find the records, and drop a torn one at the end."""
        descriptor, size = self._descriptor(), self._path.stat().st_size
        start = os.pread(descriptor, len(MAGIC), 0)
        if start != MAGIC:
            if MAGIC.startswith(start):  # killed while the file was made
                os.ftruncate(descriptor, 0)
                self._write(MAGIC)
                return
            raise StorageError(f"{self._path} is not a stream of records", hint="move the file away")
        self._end = len(MAGIC)
        while self._end + _HEAD.size <= size:
            length, _ = _HEAD.unpack(os.pread(descriptor, _HEAD.size, self._end))
            if length > MAX_RECORD_BYTES or self._end + _HEAD.size + length > size:
                break
            self._starts.append(self._end)
            self._end += _HEAD.size + length
        if self._end < size:
            os.ftruncate(descriptor, self._end)


class StreamStore:
    """The streams of one side of a run, by name.

    Parameters
    ----------
    folder : Path
        Made when the first record is appended.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._streams: dict[str, RecordStream] = {}

    def stream(self, name: str) -> RecordStream:
        """The stream called ``name``, empty if nothing was appended yet.

        Raises
        ------
        StorageError
            Its file cannot be read, or the name is not one of letters, digits, ``_``, ``-`` and ``.``.
        """
        if not _NAME.fullmatch(name):
            raise StorageError(
                f"a stream cannot be called '{name[:64]}'", hint="use letters, digits, '_', '-' and '.', 64 at most"
            )
        with self._lock:
            if name not in self._streams:
                self._streams[name] = RecordStream(self._folder / f"{name}.records")
            return self._streams[name]

    def lengths(self) -> dict[str, int]:
        """Make all records durable; returns the number of records of each stream on disk."""
        streams = {name: self.stream(name) for name in self._names()}
        for stream in streams.values():
            stream.flush()
        return {name: len(stream) for name, stream in streams.items()}

    def truncate(self, lengths: Mapping[str, int]) -> None:
        """Cut every stream back to its length of a checkpoint; those that it does not name become empty."""
        for name in sorted({*self._names(), *lengths}):
            self.stream(name).truncate(lengths.get(name, 0))

    def close(self) -> None:
        """Close all files."""
        with self._lock:
            for stream in self._streams.values():
                stream.close()
            self._streams.clear()

    def _names(self) -> list[str]:
        try:
            found = [path.name.removesuffix(".records") for path in self._folder.glob("*.records")]
        except OSError as error:
            raise files.storage_error(f"cannot read {self._folder}", error) from error
        return sorted(name for name in found if _NAME.fullmatch(name))
