"""The account of a ledger that still grows: each look sums up only what is new."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..runs.ledger_tail import LedgerTail
from .account import COLUMNS, Account, Summing, most_stretches, numbers
from .periods import Bounds, Periods


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
        self._summing.add(blocks)
        return True

    def account(self) -> Account:
        """The sums until now."""
        return Account(*self._summing.tables(), self._summing.periods, self._summing.stretches)
