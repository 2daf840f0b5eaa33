"""A run's ledger summed up in one pass, block by block: however long the run was, memory stays small."""

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
#: What a transfer was: a message of the method's, the same again after a restart, or the channel's own.
ONCE, REPEATED, CHANNEL = "once", "repeated", "channel"
#: Rows that are summed at a time.
_CHUNK = 500_000
#: With many nodes their windows become fewer, down to this number.
_NODES_TIMES_WINDOWS, _FEWEST = 40_000, 20
_PLACE = (*NAMES, "round", "step", "micro")
#: What of a ledger is summed up.
COLUMNS = [*_PLACE, "dense_bytes", "payload_bytes", "frame_bytes", "attempt"]

_Blocks: TypeAlias = "Callable[[], Iterable[pa.RecordBatch]]"


@dataclass(frozen=True, slots=True)
class Account:
    """Sums over a ledger.

    The parts (``once``, ``repeated``, ``channel``) add up to all that crossed; ``once`` alone is what the run had cost
    without a restart. Both tables have frames, dense_bytes, payload_bytes, frame_bytes (int64).

    Attributes
    ----------
    flow : pyarrow.Table
        One row per direction, kind, encoding, part (strings) and window (int64: a number of ``periods``).
    nodes : pyarrow.Table
        The same by node too, over the windows of ``stretches``.
    each : mapping of int to int
        Payload bytes of the method's own messages, each counted once, by round or step: no windows, however many.
    periods, stretches : Periods
        What the windows are; those of the nodes are wider where there are many nodes.
    """

    flow: pa.Table
    nodes: pa.Table
    each: Mapping[int, int]
    periods: Periods
    stretches: Periods

    @classmethod
    def read(cls, directory: Path, windows: int = 200) -> Account:
        """Sum up the ledger of a run directory.

        Parameters
        ----------
        directory : Path
        windows : int
            At most so many; rounds or steps are put together where there are more.

        Raises
        ------
        MissingExtraError, NotFoundError, StorageError
            See :func:`~farshore.runs.ledger_reader.read_blocks`.
        """
        look = ("node", "kind", "round", "step", "attempt")
        return cls._of(lambda: read_blocks(directory, look), lambda: read_blocks(directory, COLUMNS), windows)

    @classmethod
    def of(cls, ledger: pa.Table, windows: int = 200) -> Account:
        """Sum up a ledger that is in memory already; columns as :func:`~farshore.runs.ledger_reader.read_ledger`'s."""
        return cls._of(ledger.to_batches, ledger.select(COLUMNS).to_batches, windows)

    @classmethod
    def _of(cls, look: _Blocks, read: _Blocks, windows: int) -> Account:
        names = set[str]()
        periods = Periods.of(numbers(look(), names), windows)
        stretches = periods.wider(most_stretches(len(names)))
        summing = Summing(periods, stretches)
        summing.add(read())
        return cls(*summing.tables(), periods, stretches)

    def payload_until(self, rounds: Sequence[int]) -> list[int]:
        """Payload bytes of the method's own messages, each counted once, up to the end of each round (or step)."""
        numbers = np.array(sorted(self.each), np.int64)
        ends = np.concatenate([[0], np.cumsum([self.each[number] for number in numbers.tolist()])]).astype(np.int64)
        found: list[int] = ends[np.searchsorted(numbers, rounds, side="right")].tolist()
        return found

    def by(self, *columns: str, parts: Sequence[str] = ()) -> list[dict[str, Any]]:
        """Sums by columns of :attr:`flow`, or of :attr:`nodes` if ``node`` is among them; sorted by these columns.

        Of all parts, or of those named.
        """
        import pyarrow.compute as pc

        table = self.nodes if "node" in columns else self.flow
        if parts:
            table = table.filter(pc.is_in(table["part"], pyarrow().array(list(parts))))
        sums = _grouped(table, columns, SIZES).sort_by([(name, "ascending") for name in columns])
        return cast(list[dict[str, Any]], sums.to_pylist())


def numbers(blocks: Iterable[pa.RecordBatch], names: set[str]) -> Iterator[tuple[NDArray[np.int64], ...]]:
    """Round, step and attempt of the method's own messages, block by block; the nodes' names go to ``names``."""
    for block in blocks:
        if len(block["node"].dictionary) > len(names):  # dictionaries only grow within a segment
            names.update(block["node"].dictionary.to_pylist())
        own = _is_own(block["kind"])
        yield tuple(block[name].to_numpy()[own] for name in ("round", "step", "attempt"))


def _is_own(kinds: pa.DictionaryArray) -> NDArray[np.bool_]:
    of_method = np.array([name not in CHANNEL_KINDS for name in kinds.dictionary.to_pylist()], np.bool_)
    found: NDArray[np.bool_] = of_method[kinds.indices.to_numpy()]
    return found


def most_stretches(nodes: int) -> int:
    """Windows in which so many nodes are told apart."""
    return max(_FEWEST, _NODES_TIMES_WINDOWS // max(1, nodes))


class Summing:
    """Makes an account's tables, block after block; messages that may have been sent again are set apart until then."""

    def __init__(self, periods: Periods, stretches: Periods) -> None:
        self.periods, self.stretches = periods, stretches
        self._flow, self._nodes = _Sums([n for n in NAMES if n != "node"], periods), _Sums(NAMES, stretches)
        self._each = _Each(periods)
        self._apart = list[Any]()

    def add(self, blocks: Iterable[pa.RecordBatch]) -> None:
        """Sum up blocks."""
        pa = pyarrow()
        for chunk in _chunks(blocks):
            own = _is_own(chunk["kind"].combine_chunks())
            again = own & self.periods.resent(chunk["round"].to_numpy(), chunk["step"].to_numpy())
            chunk = chunk.append_column("frames", pa.array(np.ones(len(chunk), np.int64)))
            if again.any():
                self._apart.append(_grouped(chunk.filter(pa.array(again)), [*_PLACE, "attempt"], SIZES))
                chunk, own = chunk.filter(pa.array(~again)), own[~again]
            chunk = chunk.append_column("part", pa.array(np.where(own, 0, 2).astype(np.int8)))
            for sums in (self._flow, self._nodes, self._each):
                sums.add(chunk)

    def widen(self, periods: Periods, stretches: Periods) -> None:
        """Go on with longer periods that begin where the present ones do, each a number of them wide."""
        self.periods, self.stretches = periods, stretches
        self._flow.widen(periods)
        self._nodes.widen(stretches)
        self._each.go_on(periods)

    def tables(self) -> tuple[pa.Table, pa.Table, Mapping[int, int]]:
        """The account's two and its payload by round, with what had been set apart; more may be added later."""
        parted = None
        if self._apart:
            self._apart = [_grouped(pyarrow().concat_tables(self._apart), [*_PLACE, "attempt"], SIZES)]
            parted = _parted(self._apart[0])
        return self._flow.table(parted), self._nodes.table(parted), self._each.sums(parted)


class _Each:
    """Payload of what counts once, by round or step."""

    def __init__(self, periods: Periods) -> None:
        self._periods = replace(periods, width=1)
        self.found: defaultdict[int, int] = defaultdict(int)

    def go_on(self, periods: Periods) -> None:
        """Periods that begin where the present ones do, and end later."""
        self._periods = replace(periods, width=1)

    def sums(self, more: pa.Table | None) -> Mapping[int, int]:
        """With ``more`` on top, which is not kept."""
        whole = _Each(self._periods)
        whole.found = self.found.copy()
        if more is not None:
            whole.add(more)
        return whole.found

    def add(self, chunk: pa.Table) -> None:
        windows = self._periods.window(chunk["round"].to_numpy(), chunk["step"].to_numpy())
        payload, once = chunk["payload_bytes"].to_numpy(), chunk["part"].to_numpy() == 0
        if not once.all():
            windows, payload = windows[once], payload[once]
        if not len(windows):
            return
        # A chunk holds few rounds next to each other: counting them is ten times faster than grouping.
        numbers, places = np.unique(windows, return_inverse=True) if np.ptp(windows) > _CHUNK else (None, None)
        first = int(windows.min())
        if places is None:
            places = windows - first
        sums = np.bincount(places, weights=payload)  # exact below 2^53
        for place in np.flatnonzero(np.bincount(places)).tolist():
            number = int(numbers[place]) if numbers is not None else first + place
            self.found[self._periods.first + number] += int(sums[place])


class _Sums:
    """Sums by names, window and part, chunk after chunk."""

    def __init__(self, names: Sequence[str], periods: Periods) -> None:
        pa = pyarrow()
        self._keys, self._periods = [*names, "window", "part"], periods
        types = [*((n, pa.string()) for n in names), ("window", pa.int64()), ("part", pa.int8())]
        self._sums = pa.schema([*types, *((n, pa.int64()) for n in SIZES)]).empty_table()
        self._fresh: list[Any] = []

    def add(self, chunk: pa.Table) -> None:
        self._fresh.append(self._windowed(chunk))
        if sum(map(len, self._fresh)) > max(_CHUNK, 2 * len(self._sums)):
            self._sums, self._fresh = self._together(), []

    def widen(self, periods: Periods) -> None:
        factor, self._periods = periods.width // self._periods.width, periods
        if factor > 1:
            pa = pyarrow()
            place = self._sums.schema.get_field_index("window")
            whole = self._together()
            windows = pa.array(whole["window"].to_numpy() // factor)
            self._sums, self._fresh = _grouped(whole.set_column(place, "window", windows), self._keys, SIZES), []

    def table(self, more: pa.Table | None) -> pa.Table:
        """With ``more`` on top, which is not kept."""
        pa = pyarrow()
        self._sums, self._fresh = self._together(), []
        whole = self._sums
        if more is not None:
            whole = _grouped(pa.concat_tables([whole, self._windowed(more)]), self._keys, SIZES)
        table = whole.sort_by([(key, "ascending") for key in self._keys])
        parts = np.array([ONCE, REPEATED, CHANNEL])[table["part"].to_numpy()]
        return table.set_column(table.schema.get_field_index("part"), "part", pa.array(parts, pa.string()))

    def _windowed(self, chunk: pa.Table) -> pa.Table:
        windows = self._periods.window(chunk["round"].to_numpy(), chunk["step"].to_numpy())
        return _grouped(chunk.append_column("window", pyarrow().array(windows)), self._keys, SIZES)

    def _together(self) -> pa.Table:
        return _grouped(pyarrow().concat_tables([self._sums, *self._fresh]), self._keys, SIZES)


def _parted(table: pa.Table) -> pa.Table:
    """Of messages that share a place, those of the newest attempt count, the others were repeated."""
    pa = pyarrow()
    newest = table.group_by(list(_PLACE)).aggregate([("attempt", "max")])
    joined = table.join(newest, list(_PLACE))
    part = (joined["attempt"].to_numpy() < joined["attempt_max"].to_numpy()).astype(np.int8)
    return joined.append_column("part", pa.array(part))


def _grouped(table: pa.Table, keys: Sequence[str], sums: Sequence[str]) -> pa.Table:
    """Sums by ``keys``; strings come out as strings, whatever dictionaries they came with."""
    pa = pyarrow()
    # Threads would cost more than they save here.
    found = table.group_by(list(keys), use_threads=False).aggregate([(name, "sum") for name in sums])
    found = found.rename_columns([name.removesuffix("_sum") for name in found.column_names]).select([*keys, *sums])
    names = [i for i, field in enumerate(found.schema) if pa.types.is_dictionary(field.type)]
    for i in names:
        found = found.set_column(i, found.column_names[i], found.column(i).cast(pa.string()))
    return found


def _chunks(blocks: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Blocks put together, so that each is summed at little cost."""
    pa = pyarrow()
    waiting = list[Any]()
    rows = 0
    for block in blocks:
        waiting.append(block)
        rows += block.num_rows
        if rows >= _CHUNK:
            yield pa.Table.from_batches(waiting).unify_dictionaries().combine_chunks()
            waiting, rows = [], 0
    if rows:
        yield pa.Table.from_batches(waiting).unify_dictionaries().combine_chunks()
