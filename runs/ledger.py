"""Writing of the ledger: every transfer of a run as one row, in columnar blocks (Arrow IPC streams)."""

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
from .ledger_sums import SumsWriter

if TYPE_CHECKING:
    import pyarrow as pa

_log = logging.getLogger(__name__)

#: Maximum number of full blocks in memory; beyond it, :meth:`Ledger.record` writes before it returns.
_MAX_PENDING_BLOCKS = 64


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sums over transfers; bytes as in :class:`~farshore.core.transfer.Transfer`."""

    frames: int = 0
    dense_bytes: int = 0
    payload_bytes: int = 0
    frame_bytes: int = 0

    def plus(self, rows: Sequence[Transfer]) -> Sizes:
        """Return these sums with ``rows`` added."""
        return Sizes(
            self.frames + len(rows),
            self.dense_bytes + sum(t.dense_bytes for t in rows),
            self.payload_bytes + sum(t.payload_bytes for t in rows),
            self.frame_bytes + sum(t.frame_bytes for t in rows),
        )


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums of the uplink, the downlink, and the transfers between nodes."""

    up: Sizes = Sizes()
    down: Sizes = Sizes()
    peer: Sizes = Sizes()

    def plus(self, rows: Sequence[Transfer]) -> Totals:
        """Return these totals with ``rows`` added."""
        up, down, peer = ([t for t in rows if t.direction == direction] for direction in ("up", "down", "peer"))
        return Totals(self.up.plus(up), self.down.plus(down), self.peer.plus(peer))


class Ledger:
    """Writes the next segment (``ledger-0000.arrows``, ``ledger-0001.arrows`` …) of a directory's ledger. Thread-safe.

    A background thread writes a block when it has ``block_rows`` rows or its oldest row is ``flush_seconds`` old.
    Written rows survive a kill of the process; pending ones are lost. When writing fails, for example on a full disk,
    rows stay in memory and are written again later; :meth:`flush` and :meth:`close` raise the error, and so does
    :meth:`record` when too many blocks are pending.

    Parameters
    ----------
    directory : Path
        Created if missing.
    block_rows : int
        Rows per block.
    flush_seconds : float
        Maximum time in seconds that a row waits for its block to fill.

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
        self._lock = threading.Lock()  # guards rows, blocks and totals
        self._changed = threading.Condition(self._lock)
        self._write_lock = threading.Lock()  # guards the segment; acquired before _lock
        self._rows: list[Transfer] = []
        self._blocks: deque[list[Transfer]] = deque()  # full blocks, older than _rows
        self._totals = Totals()  # of the rows already written
        self._closing = False
        self._failing = False  # whether the thread's last write failed
        try:
            Path(directory).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise files.storage_error(f"cannot create the directory {directory}", error) from error
        self._segment = _Segment(next_segment(directory))
        self._thread = threading.Thread(target=self._write_loop, name="ledger", daemon=True)
        self._thread.start()

    @property
    def totals(self) -> Totals:
        """Totals of this segment so far, including pending rows."""
        with self._lock:
            rows, totals = [t for block in (*self._blocks, self._rows) for t in block], self._totals
        return totals.plus(rows)

    def record(self, transfer: Transfer) -> None:
        """Add a row.

        Raises
        ------
        StorageError
            The ledger is closed, or too many blocks are pending and writing them fails.
        """
        with self._lock:
            if self._closing:
                raise StorageError("cannot record a transfer: the ledger is closed")
            self._rows.append(transfer)
            rows = len(self._rows)
            if rows == self._block_rows:
                self._blocks.append(self._rows)
                self._rows = []
            if rows == 1 or rows == self._block_rows:
                self._changed.notify()
            backlogged = len(self._blocks) >= _MAX_PENDING_BLOCKS
        if backlogged:
            self.flush()

    def flush(self) -> None:
        """Write all pending rows; when it returns, they survive a kill of the process.

        Raises
        ------
        StorageError
            Writing fails; the rows stay pending.
        """
        self._write(partial=True)

    def _write(self, partial: bool) -> None:
        with self._write_lock:
            self._segment.drain()
            with self._lock:
                if partial and self._rows:
                    self._blocks.append(self._rows)
                    self._rows = []
                count = len(self._blocks)  # a bound: other threads may record faster than the disk writes
            for _ in range(count):
                self._write_oldest()

    def close(self) -> None:
        """Write all pending rows, flush them to the disk (fsync) and stop the thread; a second call does nothing.

        Raises
        ------
        StorageError
            Writing fails; pending rows are lost.
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
        block = self._blocks[0]  # only the holder of _write_lock removes blocks
        totals = self._totals.plus(block)
        with self._lock:
            self._blocks.popleft()
            self._totals = totals
        self._segment.write(block)

    def _must_write_now(self) -> bool:
        # While writing fails, a full block is not written at once: the next attempt follows after flush_seconds.
        return self._closing or (bool(self._blocks) and not self._failing)

    def _write_loop(self) -> None:
        while True:
            with self._lock:
                self._changed.wait_for(lambda: self._rows or self._blocks or self._failing or self._closing)
                full = self._changed.wait_for(self._must_write_now, self._flush_seconds)
                if self._closing:
                    return
            try:
                self._write(partial=not full)
                self._failing = False
            except StorageError as error:
                if not self._failing:
                    _log.error("cannot write the ledger; keeping rows in memory: %s", error)
                self._failing = True


class _Codes(dict[str, int]):
    """Assigns numbers to strings in the order of their first lookup."""

    def __missing__(self, name: str) -> int:
        self[name] = code = len(self)
        return code


class _Segment:
    """One segment file, and the bytes not yet written to it."""

    def __init__(self, path: Path) -> None:
        pa = pyarrow()
        self.path = path
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise files.storage_error(f"cannot open the ledger {path}", error) from error
        try:
            self._sums = SumsWriter(path)
        except OSError as error:
            os.close(self._file)
            raise files.storage_error(f"cannot open the digests of the ledger {path}", error) from error
        self._unsealed = False  # whether bytes were written since the last digest
        self._sink = io.BytesIO()
        self._schema = schema()
        self._codes = {name: _Codes() for name in NAMES}
        self._pending = memoryview(b"")
        options = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False, emit_dictionary_deltas=True)
        self._writer = pa.ipc.new_stream(pa.PythonFile(self._sink, "w"), self._schema, options=options)
        try:
            self.drain()
        except StorageError:
            os.close(self._file)
            self._sums.close()
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
        # Codes are stable across blocks, so each block writes only its new strings.
        pa, codes = pyarrow(), self._codes[name]
        indices = _array(np.fromiter(map(codes.__getitem__, values), np.int32, count))
        return pa.DictionaryArray.from_arrays(indices, _strings(list(codes)))

    def drain(self) -> None:
        """Write the pending bytes; when this fails, the bytes already written are not repeated."""
        new = self._sink.getvalue()
        if new:
            self._sink.seek(0)
            self._sink.truncate()
            self._pending = memoryview(bytes(self._pending) + new)
        try:
            while self._pending:
                written = os.write(self._file, self._pending)
                self._sums.add(self._pending[:written])
                self._unsealed = True
                self._pending = self._pending[written:]
            if self._unsealed:
                self._sums.end_block()
                self._unsealed = False
        except OSError as error:
            raise files.storage_error(f"cannot write the ledger {self.path}", error) from error

    def close(self) -> None:
        """Flush the file to the disk and close it."""
        try:
            self._writer.close()
            self.drain()
            os.fsync(self._file)
        except OSError as error:
            raise files.storage_error(f"cannot write the ledger {self.path}", error) from error
        finally:
            os.close(self._file)
            self._sums.close()


def _column(get: Callable[[Transfer], Any], rows: Sequence[Transfer], dtype: type[np.generic]) -> pa.Array:
    return _array(np.fromiter(map(get, rows), dtype, len(rows)))


def _array(values: NDArray[Any]) -> pa.Array:
    # Not pa.array(): its first call imports pandas if installed, which takes seconds.
    pa = pyarrow()
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(values)])


def _strings(values: Sequence[str]) -> pa.Array:
    pa = pyarrow()
    encoded = [value.encode() for value in values]
    ends = np.cumsum([0, *map(len, encoded)], dtype=np.int32)
    return pa.Array.from_buffers(pa.string(), len(encoded), [None, pa.py_buffer(ends), pa.py_buffer(b"".join(encoded))])
