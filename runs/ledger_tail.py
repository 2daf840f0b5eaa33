"""Reads a ledger that still grows: each look takes up where the last one stopped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import StorageError
from . import files
from .ledger_reader import pyarrow, schema, segments

if TYPE_CHECKING:
    import pyarrow as pa

#: Bytes that are read at a time.
_PIECE = 4 << 20
_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"


class LedgerTail:
    """The blocks that were added to a directory's ledger since the last look; one thread at a time.

    Parameters
    ----------
    directory : Path
    columns : sequence of str
        Read only these, in this order.
    """

    def __init__(self, directory: Path, columns: Sequence[str]) -> None:
        self._directory = directory
        self._columns = list(columns)
        self._segment: _Segment | None = None
        self.behind = False

    def fresh(self, rows: int = 1 << 62) -> Iterator[pa.RecordBatch]:
        """Whole blocks not yet given, about ``rows`` rows at most; :attr:`behind` tells whether there are more.

        Raises
        ------
        MissingExtraError, NotFoundError, StorageError
            See :func:`~farshore.runs.ledger_reader.read_blocks`.
        """
        self.behind = True
        while rows > 0:
            block = self._segment.next() if self._segment is not None else None
            if block is not None:
                rows -= block.num_rows
                yield block.select(self._columns)
            elif not self._begin_next():
                self.behind = False
                return

    def _begin_next(self) -> bool:
        """Turn to the next segment, if there is one: the last one's writer is gone, with whatever is torn there."""
        known = segments(self._directory)
        place = known.index(self._segment.path) + 1 if self._segment and self._segment.path in known else 0
        if place >= len(known):
            return False
        self._segment = _Segment(known[place], self._columns)
        return True


class _Segment:
    """One file, how far it was read, and the reader that knows its dictionaries."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path = path
        self._columns = columns
        self._offset = 0
        self._rest = b""
        self._feed = _Feed()
        self._reader: Any = None
        self._whole = 0

    def next(self) -> Any:
        """The next whole block, or None where there is none yet."""
        while not self._whole:
            if not (piece := self._read(_PIECE)):
                return None
            self._whole = self._take(self._rest + piece)
        self._whole -= 1
        return self._reader.read_next_batch()

    def _read(self, count: int) -> bytes:
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                piece = file.read(count)
        except OSError as error:
            raise files.storage_error(f"cannot read the ledger {self.path}", error) from error
        self._offset += len(piece)
        return piece

    def _take(self, data: bytes) -> int:
        """Hand whole messages to the reader; returns how many blocks are among them. A torn one waits for its rest."""
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
        self._rest = data[end:]
        if self._reader is None and end:
            self._reader = self._open()
        return blocks

    def _open(self) -> Any:
        pa = pyarrow()
        wanted = [number for number, name in enumerate(schema().names) if name in self._columns]
        try:
            reader = pa.ipc.open_stream(self._feed, options=pa.ipc.IpcReadOptions(included_fields=wanted))
        except pa.ArrowInvalid as error:
            raise StorageError(f"{self.path} is no ledger: {error}") from error
        if not set(self._columns) <= set(reader.schema.names):
            raise StorageError(f"{self.path} is no ledger of this version")
        return reader


class _Feed:
    """A file of what was added to it and not yet read; only whole messages are, so the reader never meets its end."""

    closed = False

    def __init__(self) -> None:
        self._data = memoryview(b"")

    def add(self, data: bytes) -> None:
        self._data = memoryview(bytes(self._data) + data)

    def read(self, count: int = -1) -> bytes:
        taken, self._data = (self._data[:count], self._data[count:]) if count >= 0 else (self._data, memoryview(b""))
        return bytes(taken)

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        pass
