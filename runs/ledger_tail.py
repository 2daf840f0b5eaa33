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

    def fresh(self, limit: int = 64 << 20) -> Iterator[pa.RecordBatch]:
        """Whole blocks not yet given, at most about ``limit`` bytes of the files; the rest comes with the next call.

        Raises
        ------
        MissingExtraError, NotFoundError, StorageError
            See :func:`~farshore.runs.ledger_reader.read_blocks`.
        """
        left = limit
        while left > 0:
            if self._segment is not None:
                for count, block in self._segment.fresh(left):
                    left -= count
                    if block is not None:
                        yield block.select(self._columns)
            if left > 0 and not self._begin_next():
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

    def fresh(self, limit: int) -> Iterator[tuple[int, Any]]:
        """Pairs of bytes taken from the file and a block, or None where these bytes hold none."""
        while limit > 0 and (piece := self._read(min(limit, _PIECE))):
            limit -= len(piece)
            yield len(piece), None
            for _ in range(self._take(self._rest + piece)):
                yield 0, self._reader.read_next_batch()

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
        self._data = b""

    def add(self, data: bytes) -> None:
        self._data += data

    def read(self, count: int = -1) -> bytes:
        taken, self._data = (self._data[:count], self._data[count:]) if count >= 0 else (self._data, b"")
        return taken

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        pass
