"""Incremental reading of a ledger that is still being written."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import StorageError
from . import files
from .ledger_reader import pyarrow, schema, segments
from .ledger_sums import check_block, damaged, read_sums, sums_path

if TYPE_CHECKING:
    import pyarrow as pa

#: Bytes per read.
_CHUNK = 4 << 20
_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"


class LedgerTail:
    """Follows a directory's ledger: each :meth:`read_new` yields the blocks added since the previous one.

    Not thread-safe.

    Parameters
    ----------
    directory : Path
    columns : sequence of str
        Columns to read, in this order.

    Attributes
    ----------
    behind : bool
        Whether the last :meth:`read_new` stopped at its row limit, so that more blocks may be available.
    """

    def __init__(self, directory: Path, columns: Sequence[str]) -> None:
        self._directory = directory
        self._columns = list(columns)
        self._segment: _Segment | None = None
        self.behind = False

    def read_new(self, rows: int = 1 << 62) -> Iterator[pa.RecordBatch]:
        """Yield complete new blocks, and stop after the block that reaches ``rows`` rows.

        Raises
        ------
        MissingExtraError, NotFoundError, StorageError
            See :func:`~farshore.runs.ledger_reader.read_blocks`.
        """
        self.behind = True
        while rows > 0:
            block = self._next_block()
            if block is not None:
                rows -= block.num_rows
                yield block.select(self._columns)
            elif not self._open_next():
                self.behind = False
                return

    def _next_block(self) -> Any:
        if self._segment is None:
            return None
        block = self._segment.next()
        if block is None and self._following() is not None:  # its writer has ended
            block = self._segment.next(unsealed=True)
        return block

    def _open_next(self) -> bool:
        """Open the next segment if there is one; an incomplete block at the end of the previous one is lost."""
        path = self._following()
        if path is not None:
            self._segment = _Segment(path, self._columns)
        return path is not None

    def _following(self) -> Path | None:
        known = segments(self._directory)
        index = known.index(self._segment.path) + 1 if self._segment and self._segment.path in known else 0
        return known[index] if index < len(known) else None


class _Segment:
    """One segment file, the offset read so far, and the reader that holds its dictionaries."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path = path
        self._columns = columns
        self._offset = 0
        self._blocks = 0  # whose digests were compared
        self._sums: deque[tuple[int, bytes]] = deque()
        self._incomplete = b""
        self._feed = _Feed()
        self._reader: Any = None
        self._ready = 0

    def next(self, *, unsealed: bool = False) -> Any:
        """Return the next complete block, or None if there is none yet.

        With ``unsealed``, also blocks without a digest, at the end of a segment whose writer was killed.
        """
        pa = pyarrow()
        while not self._ready:
            if not (chunk := self._read_sealed() or (self._read(_CHUNK) if unsealed or not self._is_sealed() else b"")):
                return None
            self._ready = self._feed_messages(self._incomplete + chunk)
        self._ready -= 1
        try:
            return self._reader.read_next_batch()
        except (pa.ArrowInvalid, OSError, StopIteration) as error:
            raise damaged(self.path, self._blocks) from error

    def _is_sealed(self) -> bool:
        return sums_path(self.path).exists()

    def _read_sealed(self) -> bytes:
        """Read the next block that has a digest, and compare it."""
        if not self._sums:
            self._sums.extend(read_sums(self.path, self._blocks))
        if not self._sums or self.path.stat().st_size < self._sums[0][0]:
            return b""
        end, digest = self._sums.popleft()
        block = self._read(end - self._offset)
        check_block(self.path, self._blocks, block, digest)
        self._blocks += 1
        return block

    def _read(self, count: int) -> bytes:
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                chunk = file.read(count)
        except OSError as error:
            raise files.storage_error(f"cannot read the ledger {self.path}", error) from error
        self._offset += len(chunk)
        return chunk

    def _feed_messages(self, data: bytes) -> int:
        """Pass complete messages to the reader and keep the remainder; return the number of blocks among them."""
        pa = pyarrow()
        source, end, blocks = pa.BufferReader(data), 0, 0
        while len(data) - end >= 8 and data[end : end + 8] != _END:
            source.seek(end)
            try:
                message = pa.ipc.read_message(source)
            except (pa.ArrowInvalid, EOFError, OSError):
                break
            end = source.tell()
            blocks += message.type == "record batch"
        self._feed.add(data[:end])
        self._incomplete = data[end:]
        if self._reader is None and end:
            self._reader = self._open()
        return blocks

    def _open(self) -> Any:
        pa = pyarrow()
        indices = [number for number, name in enumerate(schema().names) if name in self._columns]
        try:
            reader = pa.ipc.open_stream(self._feed, options=pa.ipc.IpcReadOptions(included_fields=indices))
        except pa.ArrowInvalid as error:
            raise StorageError(f"{self.path} is not a ledger: {error}") from error
        if not set(self._columns) <= set(reader.schema.names):
            raise StorageError(f"{self.path} is not a ledger of this version")
        return reader


class _Feed:
    """A file-like buffer for the reader. It receives complete messages only, so the reader never finds its end."""

    closed = False

    def __init__(self) -> None:
        self._data = memoryview(b"")

    def add(self, data: bytes) -> None:
        self._data = memoryview(bytes(self._data) + data)

    def read(self, count: int = -1) -> bytes:
        data, self._data = (self._data[:count], self._data[count:]) if count >= 0 else (self._data, memoryview(b""))
        return bytes(data)

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        pass
