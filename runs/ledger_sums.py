"""Digests of a ledger segment's blocks, in a file beside it: damage is noticed before the bytes reach a decoder.

``ledger-0000.sums`` has one record of 24 bytes per block: where the block ends in ``ledger-0000.arrows`` (8 bytes,
little-endian), and the XXH3-128 of its bytes, which begin where the block before it ends. A writer that was killed may
leave one block without a record, and a machine that lost power records of blocks that were never written.
"""

from __future__ import annotations

import itertools
import logging
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import xxhash

from ..core.errors import StorageError
from . import files

_log = logging.getLogger(__name__)

_RECORD = struct.Struct("<Q16s")
_CHUNK = 4 << 20


def sums_path(segment: Path) -> Path:
    """Return the path of the digests of a segment."""
    return segment.with_suffix(".sums")


class SumsWriter:
    """Appends the digest of each block of a segment, after the block itself.

    Parameters
    ----------
    segment : Path
        A new segment.

    Raises
    ------
    OSError
        The file cannot be created.
    """

    def __init__(self, segment: Path) -> None:
        self._file = os.open(sums_path(segment), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        self._end = 0
        self._hash = xxhash.xxh3_128()
        self._pending = b""

    def add(self, data: bytes | memoryview) -> None:
        """Count bytes that were written to the segment."""
        self._hash.update(data)
        self._end += len(data)

    def end_block(self) -> None:
        """Write the digest of the bytes since the last block; raises :class:`OSError` like a write."""
        self._pending += _RECORD.pack(self._end, self._hash.digest())
        self._hash.reset()
        while self._pending:
            self._pending = self._pending[os.write(self._file, self._pending) :]

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def read_sums(segment: Path, skip: int = 0) -> list[tuple[int, bytes]]:
    """Return end and digest of each block after the first ``skip``, oldest first; empty if there is no such file.

    Raises
    ------
    StorageError
        The file cannot be read, or is damaged.
    """
    path = sums_path(segment)
    try:
        with path.open("rb") as file:
            file.seek(skip * _RECORD.size)
            content = file.read()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise files.storage_error(f"cannot read {path}", error) from error
    complete = len(content) - len(content) % _RECORD.size
    found: list[tuple[int, bytes]] = list(_RECORD.iter_unpack(content[:complete]))
    if any(end <= start for (start, _), (end, _) in itertools.pairwise(found)):
        raise StorageError(f"{path} is damaged: its blocks are out of order", hint="restore it from a backup")
    return found


def check_block(segment: Path, number: int, data: bytes, digest: bytes) -> None:
    """Raise :class:`StorageError` unless ``data`` is the block that was written."""
    if xxhash.xxh3_128_digest(data) != digest:
        raise damaged(segment, number)


def check_segment(segment: Path) -> None:
    """Compare all blocks of a segment with their digests; blocks that were never written completely are left out.

    Raises
    ------
    StorageError
        A block differs.
    """
    size = segment.stat().st_size
    with segment.open("rb") as file:
        start = 0
        for number, (end, digest) in enumerate(read_sums(segment)):
            if end > size:
                _log.warning("%s ends before its block %d, which was written", segment, number)
                return
            found = xxhash.xxh3_128()
            for chunk in _chunks(end - start):
                found.update(file.read(chunk))
            if found.digest() != digest:
                raise damaged(segment, number)
            start = end


def damaged(segment: Path, number: int) -> StorageError:
    """Return the error for a damaged block, counted from 0."""
    return StorageError(
        f"the ledger {segment} is damaged: the bytes of its block {number} are not those that were written",
        hint="restore the file from a backup, or from an export of the run",
    )


def _chunks(size: int) -> Iterator[int]:
    while size > 0:
        yield min(size, _CHUNK)
        size -= _CHUNK
