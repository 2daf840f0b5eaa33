"""The account of a ledger that is still being written, updated with the new rows only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..runs.ledger_tail import LedgerTail
from .account import COLUMNS, Account, Accumulator, max_node_windows, positions
from .periods import Bounds, Periods


class GrowingAccount:
    """Incrementally aggregates a run's ledger as it grows. Not thread-safe.

    A refresh costs as much as the new rows, not as the whole ledger. Only messages of rounds that were sent again
    after a restart are aggregated again each time.

    Parameters
    ----------
    directory : Path
    windows : int
        Maximum number of windows; their width doubles whenever there would be more.
    """

    def __init__(self, directory: Path, windows: int = 200) -> None:
        self._directory = directory
        self._windows = windows
        self._bounds = Bounds()
        self._reset(Periods())

    def _reset(self, periods: Periods) -> None:
        self._tail = LedgerTail(self._directory, COLUMNS)
        self._nodes = set[str]()
        self._accumulator = Accumulator(periods, periods)

    @property
    def behind(self) -> bool:
        """Whether the last refresh left rows for the next one."""
        return self._tail.behind

    def refresh(self, rows: int = 1 << 62) -> bool:
        """Add new rows, about ``rows`` of them at most; returns whether there were any.

        Raises
        ------
        MissingExtraError, NotFoundError, StorageError
            See :func:`~farshore.runs.ledger_reader.read_blocks`.
        """
        blocks = list(self._tail.read_new(rows))
        if not blocks:
            return False
        for block in positions(blocks, self._nodes):
            self._bounds.add(*block)
        current, target = self._accumulator.periods, self._bounds.periods(self._windows)
        if (current.unit, current.first, current.resent_from) != (target.unit, target.first, target.resent_from):
            # An earlier round, the first step, or a restart changed the windows: aggregate from the beginning.
            self._reset(target)
            return self.refresh(rows)
        periods = current.extended(target.last, self._windows)
        limit = max_node_windows(len(self._nodes))
        width = max(periods.width, self._accumulator.node_periods.width)
        node_periods = replace(periods, width=width).extended(target.last, limit)
        self._accumulator.rebin(periods, node_periods)
        self._accumulator.add(blocks)
        return True

    def account(self) -> Account:
        """Return the sums over all rows read so far."""
        return Account(*self._accumulator.tables(), self._accumulator.periods, self._accumulator.node_periods)
