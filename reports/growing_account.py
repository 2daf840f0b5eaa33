"""The account of a ledger that still grows: each look sums up only what is new."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..runs.ledger_tail import LedgerTail
from .account import COLUMNS, Account, Summing, most_stretches, numbers
from .periods import Bounds, Periods

if TYPE_CHECKING:
    import pyarrow as pa

#: Rounds or steps whose payload is kept one by one.
_SINGLE = 4_000_000


class GrowingAccount:
    """Sums up a run's ledger as it grows; one thread at a time.

    A look costs what is new, not what there is. Only what a restart made ambiguous – messages of rounds that were
    sent again – is put in order anew each time.

    Parameters
    ----------
    directory : Path
    windows : int
        At most so many; they become twice as wide whenever there would be more.
    """

    def __init__(self, directory: Path, windows: int = 200) -> None:
        self._directory = directory
        self._windows = windows
        self._bounds = Bounds()
        self._begin(Periods())

    def _begin(self, periods: Periods) -> None:
        self._tail = LedgerTail(self._directory, COLUMNS)
        self._names = set[str]()
        self._summing = Summing(periods, periods)
        self._paid: NDArray[np.int64] | None = np.zeros(0, np.int64)

    @property
    def behind(self) -> bool:
        """Whether the last look left rows for the next one."""
        return self._tail.behind

    def refresh(self, rows: int = 1 << 62) -> bool:
        """Take in what was added, about ``rows`` rows of it at most; returns whether there was anything.

        Raises
        ------
        MissingExtraError, NotFoundError, StorageError
            See :func:`~farshore.runs.ledger_reader.read_blocks`.
        """
        blocks = list(self._tail.fresh(rows))
        if not blocks:
            return False
        for block in numbers(blocks, self._names):
            self._bounds.add(*block)
        known, fresh = self._summing.periods, self._bounds.periods(self._windows)
        if (known.unit, known.first, known.again) != (fresh.unit, fresh.first, fresh.again):
            # An earlier round, a first step, or a restart: what was summed up belongs elsewhere.
            self._begin(fresh)
            return self.refresh(rows)
        periods = known.longer(fresh.last, self._windows)
        most = most_stretches(len(self._names))
        stretches = replace(periods, width=max(periods.width, self._summing.stretches.width)).longer(fresh.last, most)
        self._summing.widen(periods, stretches)
        for chunk in self._summing.add(blocks):
            self._pay(chunk)
        return True

    def account(self) -> Account:
        """The sums until now."""
        flow, nodes, parted = self._summing.tables()
        periods = self._summing.periods
        paid = None if self._paid is None else self._paid[: periods.last - periods.first + 1].copy()
        if paid is not None and parted is not None:
            _add(paid, parted, periods)
        return Account(flow, nodes, periods, self._summing.stretches, paid)

    def _pay(self, chunk: pa.Table) -> None:
        """Add the payload of messages that count once to that of their rounds or steps."""
        periods = self._summing.periods
        length = periods.last - periods.first + 1
        if self._paid is None or length > _SINGLE:
            self._paid = None
            return
        if length > len(self._paid):
            self._paid = np.concatenate([self._paid, np.zeros(length, np.int64)])
        _add(self._paid, chunk, periods)


def _add(paid: NDArray[np.int64], rows: pa.Table, periods: Periods) -> None:
    once = rows["part"].to_numpy() == 0
    places = rows[periods.unit].to_numpy()[once] - periods.first
    np.add.at(paid, places, rows["payload_bytes"].to_numpy()[once])
