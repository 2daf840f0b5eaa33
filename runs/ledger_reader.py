"""Reading of the ledger: its files and columns, rows as a table or in blocks, and sums by group."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import MissingExtraError, NotFoundError, StorageError
from . import files
from .ledger_sums import check_segment

if TYPE_CHECKING:
    import pyarrow as pa

_log = logging.getLogger(__name__)

_NAME = re.compile(r"ledger-(\d{4,})\.arrows")
#: String columns, and integer columns; the column ``time`` follows them.
NAMES = ("node", "direction", "kind", "encoding")
NUMBERS = ("round", "step", "micro", "dense_bytes", "payload_bytes", "frame_bytes", "attempt")
_SIZES = ("dense_bytes", "payload_bytes", "frame_bytes")
_WRONG_FILE_HINT = "move the file out of the run directory, or read it with the version that wrote it"


def read_ledger(directory: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read all rows of a directory's ledger, in the order written.

    Of a segment without an end (its writer was killed, or is still running), the complete blocks are read.

    Parameters
    ----------
    directory : Path
    columns : sequence of str, optional
        Columns to read, in this order, to save memory; by default all.

    Returns
    -------
    pyarrow.Table
        One column per field of :class:`~farshore.core.transfer.Transfer`: node, direction, kind, encoding as
        dictionary<int32, string>; time as float64, seconds since 1970; the rest int64. Empty if nothing was
        recorded.

    Raises
    ------
    MissingExtraError
        pyarrow is not installed.
    NotFoundError
        The directory does not exist.
    StorageError
        A segment cannot be read, is damaged, or is not a ledger.
    """
    pa = pyarrow()
    names = schema().names if columns is None else list(columns)
    selected = pa.schema([schema().field(name) for name in names])
    return pa.Table.from_batches(read_blocks(directory, names), selected).unify_dictionaries()


def read_blocks(directory: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield the blocks of a directory's ledger one by one, for ledgers that do not fit into memory.

    Columns and errors are those of :func:`read_ledger`; dictionaries differ between blocks.
    """
    for path in segments(directory):
        yield from _read(path, list(columns))


def segments(directory: Path) -> list[Path]:
    """List a ledger's files in the order written.

    Raises
    ------
    NotFoundError
        The directory does not exist.
    """
    try:
        found = [(int(m[1]), path) for path in Path(directory).iterdir() if (m := _NAME.fullmatch(path.name))]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError(f"directory {directory} does not exist") from error
    except OSError as error:
        raise files.storage_error(f"cannot read the directory {directory}", error) from error
    return [path for _, path in sorted(found)]


def totals(table: pa.Table, by: Sequence[str] = ()) -> pa.Table:
    """Sum up a ledger's rows.

    Parameters
    ----------
    table : pyarrow.Table
        From :func:`read_ledger`.
    by : sequence of str
        Columns to group by; empty gives one row of overall sums.

    Returns
    -------
    pyarrow.Table
        The columns ``by``, then ``frames``, ``dense_bytes``, ``payload_bytes``, ``frame_bytes`` (int64); sorted by
        ``by``.
    """
    import pyarrow.compute as pc

    pa = pyarrow()
    if not by:
        sums = [pc.sum(table[name], min_count=0).as_py() for name in _SIZES]
        return pa.table({"frames": [table.num_rows], **{n: [s] for n, s in zip(_SIZES, sums, strict=True)}})
    # With threads the order of the groups varies, and they do not pay off here.
    grouped = table.group_by(list(by), use_threads=False)
    summed = grouped.aggregate([([], "count_all"), *((name, "sum") for name in _SIZES)])
    columns = {name: _decoded(summed[name]) for name in by}
    columns["frames"] = summed["count_all"]
    columns.update({name: summed[f"{name}_sum"] for name in _SIZES})
    return pa.table(columns).sort_by([(name, "ascending") for name in by])


def _decoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    pa = pyarrow()
    return column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column


def _read(path: Path, names: Sequence[str]) -> Iterator[Any]:
    pa = pyarrow()
    count = 0
    try:
        check_segment(path)
        with pa.OSFile(str(path)) as source:
            if _is_torn_schema(path):
                return
            indices = [number for number, name in enumerate(schema().names) if name in names]
            # Checked before columns are selected: in a file with fewer columns, the indices would be out of range.
            if pa.ipc.open_stream(source).schema != schema():
                raise StorageError(f"{path} is not a ledger of this version", hint=_WRONG_FILE_HINT)
            source.seek(0)
            # Blocks are small, so threads do not pay off.
            options = pa.ipc.IpcReadOptions(included_fields=indices, use_threads=False)
            reader = pa.ipc.open_stream(source, options=options)
            while (batch := _next(reader, path, count)) is not None:
                count += 1
                yield batch.select(list(names))
    except pa.ArrowInvalid as error:
        raise StorageError(f"{path} is not a ledger: {error}", hint=_WRONG_FILE_HINT) from error
    except OSError as error:
        raise files.storage_error(f"cannot read the ledger {path}", error) from error


def _next(reader: Any, path: Path, count: int) -> Any:
    """Read the next complete block; None at the end."""
    try:
        return reader.read_next_batch()
    except StopIteration:
        return None
    except (pyarrow().ArrowInvalid, OSError) as error:
        _log.warning("%s ends in the middle of a block, after %d complete ones: %s", path, count, error)
        return None


def _is_torn_schema(path: Path) -> bool:
    """Return whether the file ends within its schema, as when its writer was killed while opening it.

    A stream begins with the bytes ff ff ff ff, then the length of the schema message (little-endian).
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
    return start[:4] == b"\xff\xff\xff\xff"[: len(start)] and size < 8 + int.from_bytes(start[4:], "little")


def next_segment(directory: Path) -> Path:
    """Return the path of the segment that follows the existing ones in ``directory``."""
    last = segments(directory)[-1:]
    number = int(_NAME.fullmatch(last[0].name)[1]) + 1 if last else 0  # type: ignore[index]
    return Path(directory) / f"ledger-{number:04d}.arrows"


def schema() -> pa.Schema:
    """Return the schema of every segment."""
    pa = pyarrow()
    name = pa.dictionary(pa.int32(), pa.string())
    types: list[tuple[str, Any]] = [(n, name) for n in NAMES]
    return pa.schema([*types, *((n, pa.int64()) for n in NUMBERS), ("time", pa.float64())])


def pyarrow() -> Any:
    """Import pyarrow on first use.

    Raises
    ------
    MissingExtraError
        pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.ipc
    except ModuleNotFoundError as error:
        raise MissingExtraError("pyarrow", "server") from error
    return pa
