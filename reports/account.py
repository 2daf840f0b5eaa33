"""Sums of a run's ledger by node, kind, encoding and window, computed in one pass with bounded memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from ..runs.ledger_reader import NAMES, pyarrow, read_blocks
from ..runs.traffic import CHANNEL_KINDS
from .periods import Periods

if TYPE_CHECKING:
    import pyarrow as pa

SIZES = ("frames", "dense_bytes", "payload_bytes", "frame_bytes")
#: Parts of the traffic: the method's messages, their repetitions after a restart, and the channel's own frames.
ONCE, REPEATED, CHANNEL = "once", "repeated", "channel"
#: Rows that are aggregated at a time.
_CHUNK = 500_000
#: Bound on nodes times windows of the table by node, and the least number of its windows.
_MAX_NODE_WINDOWS, _MIN_WINDOWS = 40_000, 20
#: Columns that identify a message; rows that agree in them are attempts at the same message.
_MESSAGE_KEY = (*NAMES, "round", "step", "micro")
#: Ledger columns that the sums need.
COLUMNS = [*_MESSAGE_KEY, "dense_bytes", "payload_bytes", "frame_bytes", "attempt"]

_Blocks: TypeAlias = "Callable[[], Iterable[pa.RecordBatch]]"


@dataclass(frozen=True, slots=True)
class Account:
    """Sums over a ledger.

    The parts (``once``, ``repeated``, ``channel``) add up to all traffic; ``once`` alone is what the run would have
    sent without a restart. Both tables have the columns frames, dense_bytes, payload_bytes and frame_bytes (int64).

    Attributes
    ----------
    flow_table : pyarrow.Table
        One row per direction, kind, encoding, part (strings) and window (int64: an index into ``periods``).
    node_table : pyarrow.Table
        The same by node too, over the windows of ``node_periods``.
    payload_by_round : mapping of int to int
        Payload bytes of the method's messages, each counted once, by round (or step); never merged into windows.
    periods, node_periods : Periods
        The windows of the two tables; those of ``node_table`` are wider if there are many nodes.
    """

    flow_table: pa.Table
    node_table: pa.Table
    payload_by_round: Mapping[int, int]
    periods: Periods
    node_periods: Periods

    @classmethod
    def read(cls, directory: Path, windows: int = 200) -> Account:
        """Aggregate the ledger of a run directory.

        Parameters
        ----------
        directory : Path
        windows : int
            Maximum number of windows; consecutive rounds or steps are merged if there are more.

        Raises
        ------
        MissingExtraError, NotFoundError, StorageError
            See :func:`~farshore.runs.ledger_reader.read_blocks`.
        """
        first_pass = ("node", "kind", "round", "step", "attempt")
        return cls._build(lambda: read_blocks(directory, first_pass), lambda: read_blocks(directory, COLUMNS), windows)

    @classmethod
    def from_table(cls, ledger: pa.Table, windows: int = 200) -> Account:
        """Aggregate a ledger in memory, with the columns of :func:`~farshore.runs.ledger_reader.read_ledger`."""
        return cls._build(ledger.to_batches, ledger.select(COLUMNS).to_batches, windows)

    @classmethod
    def _build(cls, read_positions: _Blocks, read_rows: _Blocks, windows: int) -> Account:
        nodes = set[str]()
        periods = Periods.from_positions(positions(read_positions(), nodes), windows)
        node_periods = periods.coarsened(max_node_windows(len(nodes)))
        accumulator = Accumulator(periods, node_periods)
        accumulator.add(read_rows())
        return cls(*accumulator.tables(), periods, node_periods)

    def payload_until(self, rounds: Sequence[int]) -> list[int]:
        """Cumulative payload bytes at the end of each of ``rounds`` (or steps).

        Only the method's messages count, each once.
        """
        known = np.array(sorted(self.payload_by_round), np.int64)
        sizes = [self.payload_by_round[number] for number in known.tolist()]
        cumulative = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        found: list[int] = cumulative[np.searchsorted(known, rounds, side="right")].tolist()
        return found

    def by(self, *columns: str, parts: Sequence[str] = ()) -> list[dict[str, Any]]:
        """Sums grouped and sorted by ``columns`` of :attr:`node_table` if ``node`` is among them, else of
        :attr:`flow_table`.

        Parameters
        ----------
        *columns : str
        parts : sequence of str
            Parts to include; all if empty.
        """
        import pyarrow.compute as pc

        table = self.node_table if "node" in columns else self.flow_table
        if parts:
            table = table.filter(pc.is_in(table["part"], pyarrow().array(list(parts))))
        sums = _grouped(table, columns, SIZES).sort_by([(name, "ascending") for name in columns])
        return cast(list[dict[str, Any]], sums.to_pylist())


def positions(blocks: Iterable[pa.RecordBatch], nodes: set[str]) -> Iterator[tuple[NDArray[np.int64], ...]]:
    """Yield round, step and attempt of the method's messages block by block; adds node names to ``nodes``."""
    for block in blocks:
        if len(block["node"].dictionary) > len(nodes):  # dictionaries only grow within a segment
            nodes.update(block["node"].dictionary.to_pylist())
        of_method = _is_of_method(block["kind"])
        yield tuple(block[name].to_numpy()[of_method] for name in ("round", "step", "attempt"))


def _is_of_method(kinds: pa.DictionaryArray) -> NDArray[np.bool_]:
    by_code = np.array([name not in CHANNEL_KINDS for name in kinds.dictionary.to_pylist()], np.bool_)
    found: NDArray[np.bool_] = by_code[kinds.indices.to_numpy()]
    return found


def max_node_windows(nodes: int) -> int:
    """Maximum number of windows of :attr:`Account.node_table` for this number of nodes."""
    return max(_MIN_WINDOWS, _MAX_NODE_WINDOWS // max(1, nodes))


class Accumulator:
    """Builds the tables of an :class:`Account` block by block.

    Rows of rounds that a restart may have sent again are kept separately: only later blocks show which attempt counts.

    Parameters
    ----------
    periods, node_periods : Periods
    """

    def __init__(self, periods: Periods, node_periods: Periods) -> None:
        self.periods, self.node_periods = periods, node_periods
        self._flow = _GroupedSums([n for n in NAMES if n != "node"], periods)
        self._nodes = _GroupedSums(NAMES, node_periods)
        self._payload = _PayloadByRound(periods)
        self._ambiguous = list[Any]()

    def add(self, blocks: Iterable[pa.RecordBatch]) -> None:
        """Add the rows of ``blocks``."""
        pa = pyarrow()
        for chunk in _chunks(blocks):
            of_method = _is_of_method(chunk["kind"].combine_chunks())
            ambiguous = of_method & self.periods.may_be_resent(chunk["round"].to_numpy(), chunk["step"].to_numpy())
            chunk = chunk.append_column("frames", pa.array(np.ones(len(chunk), np.int64)))
            if ambiguous.any():
                self._ambiguous.append(_grouped(chunk.filter(pa.array(ambiguous)), [*_MESSAGE_KEY, "attempt"], SIZES))
                chunk, of_method = chunk.filter(pa.array(~ambiguous)), of_method[~ambiguous]
            chunk = chunk.append_column("part", pa.array(np.where(of_method, 0, 2).astype(np.int8)))
            for sums in (self._flow, self._nodes, self._payload):
                sums.add(chunk)

    def rebin(self, periods: Periods, node_periods: Periods) -> None:
        """Continue with longer periods that start where the current ones do, at a multiple of their width."""
        self.periods, self.node_periods = periods, node_periods
        self._flow.rebin(periods)
        self._nodes.rebin(node_periods)
        self._payload.extend(periods)

    def tables(self) -> tuple[pa.Table, pa.Table, Mapping[int, int]]:
        """Return flow table, node table and payload by round, ambiguous rows resolved; more rows may be added later."""
        resolved = None
        if self._ambiguous:
            self._ambiguous = [_grouped(pyarrow().concat_tables(self._ambiguous), [*_MESSAGE_KEY, "attempt"], SIZES)]
            resolved = _with_part(self._ambiguous[0])
        return self._flow.table(resolved), self._nodes.table(resolved), self._payload.sums(resolved)


class _PayloadByRound:
    """Payload bytes of the part ``once`` by round or step."""

    def __init__(self, periods: Periods) -> None:
        self._periods = replace(periods, width=1)
        self.found: defaultdict[int, int] = defaultdict(int)

    def extend(self, periods: Periods) -> None:
        """Use periods that start where the current ones do and end later."""
        self._periods = replace(periods, width=1)

    def sums(self, more: pa.Table | None) -> Mapping[int, int]:
        """The sums with the rows of ``more`` added, which are not kept."""
        total = _PayloadByRound(self._periods)
        total.found = self.found.copy()
        if more is not None:
            total.add(more)
        return total.found

    def add(self, chunk: pa.Table) -> None:
        windows = self._periods.window(chunk["round"].to_numpy(), chunk["step"].to_numpy())
        payload, once = chunk["payload_bytes"].to_numpy(), chunk["part"].to_numpy() == 0
        if not once.all():
            windows, payload = windows[once], payload[once]
        if not len(windows):
            return
        # A chunk holds few, adjacent rounds: bincount is ten times faster than group_by.
        unique, bins = np.unique(windows, return_inverse=True) if np.ptp(windows) > _CHUNK else (None, None)
        first = int(windows.min())
        if bins is None:
            bins = windows - first
        sums = np.bincount(bins, weights=payload)  # exact below 2^53
        for index in np.flatnonzero(np.bincount(bins)).tolist():
            number = int(unique[index]) if unique is not None else first + index
            self.found[self._periods.first + number] += int(sums[index])


class _GroupedSums:
    """Sums by names, window and part, added up chunk by chunk."""

    def __init__(self, names: Sequence[str], periods: Periods) -> None:
        pa = pyarrow()
        self._keys, self._periods = [*names, "window", "part"], periods
        types = [*((n, pa.string()) for n in names), ("window", pa.int64()), ("part", pa.int8())]
        self._sums = pa.schema([*types, *((n, pa.int64()) for n in SIZES)]).empty_table()
        self._pending: list[Any] = []

    def add(self, chunk: pa.Table) -> None:
        self._pending.append(self._windowed(chunk))
        if sum(map(len, self._pending)) > max(_CHUNK, 2 * len(self._sums)):
            self._sums, self._pending = self._merged(), []

    def rebin(self, periods: Periods) -> None:
        factor, self._periods = periods.width // self._periods.width, periods
        if factor > 1:
            pa = pyarrow()
            column = self._sums.schema.get_field_index("window")
            merged = self._merged()
            windows = pa.array(merged["window"].to_numpy() // factor)
            self._sums, self._pending = _grouped(merged.set_column(column, "window", windows), self._keys, SIZES), []

    def table(self, more: pa.Table | None) -> pa.Table:
        """The sums as a table with the rows of ``more`` added, which are not kept."""
        pa = pyarrow()
        self._sums, self._pending = self._merged(), []
        total = self._sums
        if more is not None:
            total = _grouped(pa.concat_tables([total, self._windowed(more)]), self._keys, SIZES)
        table = total.sort_by([(key, "ascending") for key in self._keys])
        parts = np.array([ONCE, REPEATED, CHANNEL])[table["part"].to_numpy()]
        return table.set_column(table.schema.get_field_index("part"), "part", pa.array(parts, pa.string()))

    def _windowed(self, chunk: pa.Table) -> pa.Table:
        windows = self._periods.window(chunk["round"].to_numpy(), chunk["step"].to_numpy())
        return _grouped(chunk.append_column("window", pyarrow().array(windows)), self._keys, SIZES)

    def _merged(self) -> pa.Table:
        return _grouped(pyarrow().concat_tables([self._sums, *self._pending]), self._keys, SIZES)


def _with_part(table: pa.Table) -> pa.Table:
    """Add the column ``part``: 0 (once) for the newest attempt at a message, 1 (repeated) for earlier ones."""
    pa = pyarrow()
    newest = table.group_by(list(_MESSAGE_KEY)).aggregate([("attempt", "max")])
    joined = table.join(newest, list(_MESSAGE_KEY))
    part = (joined["attempt"].to_numpy() < joined["attempt_max"].to_numpy()).astype(np.int8)
    return joined.append_column("part", pa.array(part))


def _grouped(table: pa.Table, keys: Sequence[str], sums: Sequence[str]) -> pa.Table:
    """Sum the columns ``sums`` by ``keys``; dictionary columns become string columns."""
    pa = pyarrow()
    # Threads would cost more than they save here.
    found = table.group_by(list(keys), use_threads=False).aggregate([(name, "sum") for name in sums])
    found = found.rename_columns([name.removesuffix("_sum") for name in found.column_names]).select([*keys, *sums])
    names = [i for i, field in enumerate(found.schema) if pa.types.is_dictionary(field.type)]
    for i in names:
        found = found.set_column(i, found.column_names[i], found.column(i).cast(pa.string()))
    return found


def _chunks(blocks: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Concatenate blocks into tables of about ``_CHUNK`` rows, to amortize the cost of each aggregation."""
    pa = pyarrow()
    pending = list[Any]()
    rows = 0
    for block in blocks:
        pending.append(block)
        rows += block.num_rows
        if rows >= _CHUNK:
            yield pa.Table.from_batches(pending).unify_dictionaries().combine_chunks()
            pending, rows = [], 0
    if rows:
        yield pa.Table.from_batches(pending).unify_dictionaries().combine_chunks()
