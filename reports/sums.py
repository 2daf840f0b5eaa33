"""A run's sums as files for machines: one row per node, direction, kind, encoding, part and window."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..runs import files

if TYPE_CHECKING:
    import pyarrow as pa

    from .account import Account


def table(account: Account) -> pa.Table:
    """The sums, each window by the first and last round or step in it.

    Columns: node, direction, kind, encoding, part (``once``, ``repeated`` after a restart, ``channel``: not the
    method's), first and last (int64), frames, dense_bytes, payload_bytes, frame_bytes (int64).
    """
    import pyarrow as pa

    unit = account.stretches.unit
    spans = [account.stretches.span(window) for window in account.nodes["window"].to_pylist()]
    found, place = account.nodes, account.nodes.schema.get_field_index("window")
    found = found.set_column(place, f"last_{unit}", pa.array([last for _, last in spans], pa.int64()))
    return found.add_column(place, f"first_{unit}", pa.array([first for first, _ in spans], pa.int64()))


def write_csv(account: Account, path: Path) -> None:
    """Write :func:`table` as CSV.

    Raises
    ------
    StorageError
        The file cannot be written.
    """
    from pyarrow import csv

    _write(path, lambda temporary: csv.write_csv(table(account), temporary))


def write_parquet(account: Account, path: Path) -> None:
    """Write :func:`table` as Parquet.

    Raises
    ------
    StorageError
        The file cannot be written.
    """
    from pyarrow import parquet

    _write(path, lambda temporary: parquet.write_table(table(account), temporary))


def _write(path: Path, write: Any) -> None:
    files.replace(path.expanduser(), write)
