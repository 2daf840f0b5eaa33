"""Throughput of a run by node and direction, from the newest rows of its ledger."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from ...core.errors import FarshoreError
from ...reports.run_report import DIRECTIONS
from ...runs.ledger_reader import totals
from ...runs.ledger_tail import LedgerTail

#: Seconds over which rates are averaged. The latest second is left out: the writer still buffers the newest rows.
WINDOW = 10
#: Rows that one update reads.
_ROWS = 2_000_000
_COLUMNS = ("node", "direction", "frame_bytes", "dense_bytes", "payload_bytes", "time")


class Throughput:
    """Measures a run's frame bytes by node and direction: totals, and rates over the last seconds.

    Parameters
    ----------
    directory : Path
        The run directory.

    Attributes
    ----------
    bytes : dict
        Total frame bytes so far by direction (``up``, ``down``, ``peer``).
    """

    def __init__(self, directory: Path) -> None:
        self._tail = LedgerTail(directory, _COLUMNS)
        self._recent: dict[int, dict[tuple[str, str], int]] = {}
        self.bytes = dict.fromkeys(DIRECTIONS, 0)

    def update(self, now: float) -> bool:
        """Read new rows at ``now`` (seconds since 1970); returns whether there were any. Not thread-safe."""
        import pyarrow as pa
        import pyarrow.compute as pc

        try:
            blocks = list(self._tail.read_new(_ROWS))
        except FarshoreError:  # the directory does not exist yet, or was removed
            return False
        self._recent = {second: sums for second, sums in self._recent.items() if second >= now - WINDOW - 1}
        if not blocks:
            return False
        table = pa.Table.from_batches(blocks).unify_dictionaries()
        for row in totals(table, by=("direction",)).to_pylist():
            self.bytes[row["direction"]] += row["frame_bytes"]
        recent = table.filter(pc.greater_equal(table["time"], now - WINDOW - 1))
        recent = recent.append_column("second", pc.floor(recent["time"]))
        for row in totals(recent, by=("second", "node", "direction")).to_pylist():
            sums = self._recent.setdefault(int(row["second"]), defaultdict(int))
            sums[row["node"], row["direction"]] += row["frame_bytes"]
        return True

    def rates(self, now: float) -> dict[tuple[str, str], float]:
        """Bytes per second by (node, direction); without entries for zero."""
        found: dict[tuple[str, str], float] = defaultdict(float)
        for second, sums in self._recent.items():
            if now - WINDOW - 1 <= second < now - 1:
                for key, count in sums.items():
                    found[key] += count / WINDOW
        return dict(found)
