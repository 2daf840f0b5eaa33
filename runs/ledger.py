"""The ledger: every transfer of a run as one row, written in columnar blocks (Arrow IPC streams)."""

from __future__ import annotations

import io
import logging
import operator
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import StorageError
from ..core.transfer import Transfer
from . import files
from .ledger_reader import NAMES, NUMBERS, next_segment, pyarrow, schema

if TYPE_CHECKING:
    import pyarrow as pa

_log = logging.getLogger(__name__)

#: Blocks that may wait for the disk; then recording waits too.
_WAITING_BLOCKS = 64


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sums over transfers; bytes as in :class:`~farshore.core.transfer.Transfer`."""

    frames: int = 0
    dense_bytes: int = 0
    payload_bytes: int = 0
    frame_bytes: int = 0

    def plus(self, rows: Sequence[Transfer]) -> Sizes:
        """These sums with ``rows`` added."""
        return Sizes(
            self.frames + len(rows),
            self.dense_bytes + sum(t.dense_bytes for t in rows),
            self.payload_bytes + sum(t.payload_bytes for t in rows),
            self.frame_bytes + sum(t.frame_bytes for t in rows),
        )


@dataclass(frozen=True, slots=True)
class Totals:
    """What crossed so far, uplink and downlink, and between nodes."""

    up: Sizes = Sizes()
    down: Sizes = Sizes()
    peer: Sizes = Sizes()

    def plus(self, rows: Sequence[Transfer]) -> Totals:
        """These totals with ``rows`` added."""
        up, down, peer = ([t for t in rows if t.direction == way] for way in ("up", "down", "peer"))
        return Totals(self.up.plus(up), self.down.plus(down), self.peer.plus(peer))


class Ledger:
    """Writes the next segment (``ledger-0000.arrows``, ``ledger-0001.arrows`` …) of a directory's ledger.

    A thread of its own writes a block when ``block_rows`` rows wait or the oldest of them is ``flush_seconds`` old.
    What was written survives a kill -9; what was not is lost. When the disk refuses, rows wait in memory and are tried
    again; :meth:`flush` and :meth:`close` tell, and so does :meth:`record` when too many wait.

    Parameters
    ----------
    directory : Path
        Made if it is not there.
    block_rows : int
        Rows per block.
    flush_seconds : float
        Longest time in seconds that a row waits for its block to fill.

    Raises
    ------
    MissingExtraError
        pyarrow is not installed.
    StorageError
        The segment cannot be opened.
    """

    def __init__(self, directory: Path, block_rows: int = 4096, flush_seconds: float = 1.0) -> None:
        if block_rows < 1:
            raise ValueError("block_rows must be at least 1")
        self._block_rows = block_rows
        self._flush_seconds = flush_seconds
        self._lock = threading.Lock()  # rows and totals
        self._changed = threading.Condition(self._lock)
        self._writing = threading.Lock()  # the segment; taken before the other one
        self._rows: list[Transfer] = []
        self._blocks: deque[list[Transfer]] = deque()  # full ones, older than _rows
        self._totals = Totals()  # of what is in neither
        self._closing = False
        self._refused = False  # the last try of the thread
        try:
            Path(directory).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise files.storage_error(f"cannot make the directory {directory}", error) from error
        self._segment = _Segment(next_segment(directory))
        self._thread = threading.Thread(target=self._write_on, name="ledger", daemon=True)
        self._thread.start()

    @property
    def totals(self) -> Totals:
        """Running totals of this segment, rows that wait for their block included."""
        with self._lock:
            rows, totals = [t for block in (*self._blocks, self._rows) for t in block], self._totals
        return totals.plus(rows)

    def record(self, transfer: Transfer) -> None:
        """Add a row; any thread may.

        Raises
        ------
        StorageError
            The ledger is closed, or the disk has refused so many blocks that no more can wait.
        """
        with self._lock:
            if self._closing:
                raise StorageError("the ledger is closed; nothing can be recorded any more")
            self._rows.append(transfer)
            rows = len(self._rows)
            if rows == self._block_rows:
                self._blocks.append(self._rows)
                self._rows = []
            if rows == 1 or rows == self._block_rows:
                self._changed.notify()
            crowded = len(self._blocks) >= _WAITING_BLOCKS
        if crowded:
            self.flush()

    def flush(self) -> None:
        """Write what waits; returns when a kill -9 can no longer take it.

        Raises
        ------
        StorageError
            The disk refuses; the rows wait on.
        """
        self._write(partial=True)

    def _write(self, partial: bool) -> None:
        with self._writing:
            self._segment.drain()
            with self._lock:
                if partial and self._rows:
                    self._blocks.append(self._rows)
                    self._rows = []
                count = len(self._blocks)  # of those only: others may be recording faster than the disk writes
            for _ in range(count):
                self._write_oldest()

    def close(self) -> None:
        """Write what waits, sync it to the disk and end the thread; a second call does nothing.

        Raises
        ------
        StorageError
            The disk refuses; rows are lost.
        """
        with self._lock:
            if self._closing:
                return
            self._closing = True
            self._changed.notify()
        self._thread.join()
        try:
            self.flush()
        finally:
            self._segment.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write_oldest(self) -> None:
        block = self._blocks[0]  # whoever holds _writing is the only one to take blocks away
        totals = self._totals.plus(block)
        with self._lock:
            self._blocks.popleft()
            self._totals = totals
        self._segment.write(block)

    def _pressing(self) -> bool:
        # While the disk refuses, a full block is no reason to try at once.
        return self._closing or (bool(self._blocks) and not self._refused)

    def _write_on(self) -> None:
        while True:
            with self._lock:
                self._changed.wait_for(lambda: self._rows or self._blocks or self._refused or self._closing)
                full = self._changed.wait_for(self._pressing, self._flush_seconds)
                if self._closing:
                    return
            try:
                self._write(partial=not full)
                self._refused = False
            except StorageError as error:
                if not self._refused:
                    _log.error("the ledger waits for the disk: %s", error)
                self._refused = True


class _Codes(dict[str, int]):
    """Numbers strings in the order they are first asked for."""

    def __missing__(self, name: str) -> int:
        self[name] = code = len(self)
        return code


class _Segment:
    """One file, and what of it the disk has not taken yet."""

    def __init__(self, path: Path) -> None:
        pa = pyarrow()
        self.path = path
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise files.storage_error(f"cannot open the ledger {path}", error) from error
        self._sink = io.BytesIO()
        self._schema = schema()
        self._codes = {name: _Codes() for name in NAMES}
        self._waiting = memoryview(b"")
        options = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False, emit_dictionary_deltas=True)
        self._writer = pa.ipc.new_stream(pa.PythonFile(self._sink, "w"), self._schema, options=options)
        try:
            self.drain()
        except StorageError:
            os.close(self._file)
            raise

    def write(self, rows: Sequence[Transfer]) -> None:
        """Write a block."""
        pa = pyarrow()
        names = [self._encoded(name, map(operator.attrgetter(name), rows), len(rows)) for name in NAMES]
        numbers = [_column(operator.attrgetter(name), rows, np.int64) for name in NUMBERS]
        time = _column(operator.attrgetter("time"), rows, np.float64)
        batch = pa.RecordBatch.from_arrays([*names, *numbers, time], schema=self._schema)
        self._writer.write_batch(batch)
        self.drain()

    def _encoded(self, name: str, values: Iterable[str], count: int) -> pa.DictionaryArray:
        # Codes stay the same from block to block, so that only new strings are written again.
        pa, codes = pyarrow(), self._codes[name]
        indices = _array(np.fromiter(map(codes.__getitem__, values), np.int32, count))
        return pa.DictionaryArray.from_arrays(indices, _strings(list(codes)))

    def drain(self) -> None:
        """Hand the disk what it has not taken; a part may go through before it refuses."""
        fresh = self._sink.getvalue()
        if fresh:
            self._sink.seek(0)
            self._sink.truncate()
            self._waiting = memoryview(bytes(self._waiting) + fresh)
        try:
            while self._waiting:
                self._waiting = self._waiting[os.write(self._file, self._waiting) :]
        except OSError as error:
            raise files.storage_error(f"cannot write the ledger {self.path}", error) from error

    def close(self) -> None:
        """Sync and close."""
        try:
            self._writer.close()
            self.drain()
            os.fsync(self._file)
        except OSError as error:
            raise files.storage_error(f"cannot write the ledger {self.path}", error) from error
        finally:
            os.close(self._file)


def _column(get: Callable[[Transfer], Any], rows: Sequence[Transfer], dtype: type[np.generic]) -> pa.Array:
    return _array(np.fromiter(map(get, rows), dtype, len(rows)))


def _array(values: NDArray[Any]) -> pa.Array:
    # Not pa.array(): its first call imports pandas where that is installed, which takes seconds.
    pa = pyarrow()
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(values)])


def _strings(values: Sequence[str]) -> pa.Array:
    pa = pyarrow()
    raw = [value.encode() for value in values]
    ends = np.cumsum([0, *map(len, raw)], dtype=np.int32)
    return pa.Array.from_buffers(pa.string(), len(raw), [None, pa.py_buffer(ends), pa.py_buffer(b"".join(raw))])
