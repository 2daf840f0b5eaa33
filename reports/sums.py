"""Exports a run's sums as CSV or Parquet: one row per node, direction, kind, encoding, part and window."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..runs import files

if TYPE_CHECKING:
    import pyarrow as pa

    from .account import Account


def table(account: Account) -> pa.Table:
    """The sums as a table, each window given by its first and last round or step.

    Returns
    -------
    pyarrow.Table
        Columns node, direction, kind, encoding (strings), ``first_round`` and ``last_round`` (or ``first_step`` and
        ``last_step``; int64), part (``once``; ``repeated`` after a restart; ``channel``: the channels' own frames),
        frames, dense_bytes, payload_bytes, frame_bytes (int64).
    """
    import pyarrow as pa

    unit = account.node_periods.unit
    spans = [account.node_periods.span(window) for window in account.node_table["window"].to_pylist()]
    found, column = account.node_table, account.node_table.schema.get_field_index("window")
    found = found.set_column(column, f"last_{unit}", pa.array([last for _, last in spans], pa.int64()))
    return found.add_column(column, f"first_{unit}", pa.array([first for first, _ in spans], pa.int64()))


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
