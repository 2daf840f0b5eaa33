"""A ledger's files: what they are called, what columns they have, and how they are read and summed up."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import MissingExtraError, NotFoundError, StorageError
from . import files

if TYPE_CHECKING:
    import pyarrow as pa

_log = logging.getLogger(__name__)

_NAME = re.compile(r"ledger-(\d{4,})\.arrows")
#: Columns of strings, and of whole numbers; the time comes last.
NAMES = ("node", "direction", "kind", "encoding")
NUMBERS = ("round", "step", "micro", "dense_bytes", "payload_bytes", "frame_bytes", "attempt")
_SIZES = ("dense_bytes", "payload_bytes", "frame_bytes")
_FOREIGN = "move the file out of the run directory, or read it with the version that wrote it"


def read_ledger(directory: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """All rows of a directory's ledger, in the order written.

    A segment whose end is missing (its writer was killed, or is still at it) gives the blocks that are whole.

    Parameters
    ----------
    directory : Path
    columns : sequence of str, optional
        Read only these, in this order: a long run's ledger takes less memory. All of them by default.

    Returns
    -------
    pyarrow.Table
        One column per field of :class:`~farshore.core.transfer.Transfer`: node, direction, kind, encoding as
        dictionary<int32, string>; time as float64, seconds since 1970; the rest int64. No rows where nothing was
        recorded.

    Raises
    ------
    MissingExtraError
        pyarrow is not installed.
    NotFoundError
        There is no such directory.
    StorageError
        A segment cannot be read, or is no ledger.
    """
    pa = pyarrow()
    names = schema().names if columns is None else list(columns)
    wanted = pa.schema([schema().field(name) for name in names])
    return pa.Table.from_batches(read_blocks(directory, names), wanted).unify_dictionaries()


def read_blocks(directory: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The blocks of a directory's ledger one by one, so that a long one need not fit into memory.

    Columns and errors are those of :func:`read_ledger`; dictionaries differ from block to block.
    """
    for path in segments(directory):
        yield from _read(path, list(columns))


def segments(directory: Path) -> list[Path]:
    """A ledger's files in the order written.

    Raises
    ------
    NotFoundError
        There is no such directory.
    """
    try:
        found = [(int(m[1]), path) for path in Path(directory).iterdir() if (m := _NAME.fullmatch(path.name))]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError(f"there is no directory {directory}") from error
    except OSError as error:
        raise files.storage_error(f"cannot read the directory {directory}", error) from error
    return [path for _, path in sorted(found)]


def totals(table: pa.Table, by: Sequence[str] = ()) -> pa.Table:
    """Sums of a ledger's rows.

    Parameters
    ----------
    table : pyarrow.Table
        From :func:`read_ledger`.
    by : sequence of str
        Columns to group by; none = one row over everything.

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
    # Threads would give the groups in another order each time, and cost more than they save here.
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
        with pa.OSFile(str(path)) as source:
            if _is_torn_schema(path):
                return
            wanted = [number for number, name in enumerate(schema().names) if name in names]
            # Before the columns are read, or a file with fewer of them would be an index out of range.
            if pa.ipc.open_stream(source).schema != schema():
                raise StorageError(f"{path} is no ledger of this version", hint=_FOREIGN)
            source.seek(0)
            # Blocks are small: threads would cost more than they save.
            options = pa.ipc.IpcReadOptions(included_fields=wanted, use_threads=False)
            reader = pa.ipc.open_stream(source, options=options)
            while (batch := _next(reader, path, count)) is not None:
                count += 1
                yield batch.select(list(names))
    except pa.ArrowInvalid as error:
        raise StorageError(f"{path} is no ledger: {error}", hint=_FOREIGN) from error
    except OSError as error:
        raise files.storage_error(f"cannot read the ledger {path}", error) from error


def _next(reader: Any, path: Path, count: int) -> Any:
    """The next whole block, or None at the end."""
    try:
        return reader.read_next_batch()
    except StopIteration:
        return None
    except (pyarrow().ArrowInvalid, OSError) as error:
        _log.warning("%s ends in the middle of a block (%d whole ones): %s", path, count, error)
        return None


def _is_torn_schema(path: Path) -> bool:
    """Whether the file ends before its schema does, as when its writer was killed while opening it.

    A stream begins with four bytes of ones, then the length of the schema's message (little-endian).
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
    return start[:4] == b"\xff\xff\xff\xff"[: len(start)] and size < 8 + int.from_bytes(start[4:], "little")


def next_segment(directory: Path) -> Path:
    """The file that comes after those that ``directory`` has."""
    last = segments(directory)[-1:]
    number = int(_NAME.fullmatch(last[0].name)[1]) + 1 if last else 0  # type: ignore[index]
    return Path(directory) / f"ledger-{number:04d}.arrows"


def schema() -> pa.Schema:
    """Of every segment."""
    pa = pyarrow()
    name = pa.dictionary(pa.int32(), pa.string())
    types: list[tuple[str, Any]] = [(n, name) for n in NAMES]
    return pa.schema([*types, *((n, pa.int64()) for n in NUMBERS), ("time", pa.float64())])


def pyarrow() -> Any:
    """The library, imported when it is first needed.

    Raises
    ------
    MissingExtraError
        It is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.ipc
    except ModuleNotFoundError as error:
        raise MissingExtraError("pyarrow", "server") from error
    return pa
