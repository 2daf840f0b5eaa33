"""How fast a run's bytes flow, node by node, from the end of its growing ledger."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from ...core.errors import FarshoreError
from ...reports.run_report import WAYS
from ...runs.ledger_reader import totals
from ...runs.ledger_tail import LedgerTail

#: Seconds over which a rate is taken; the last one is left out, since a ledger's newest rows are still in memory.
WINDOW = 10
#: Rows that one look takes in.
_ROWS = 2_000_000
_COLUMNS = ("node", "direction", "frame_bytes", "dense_bytes", "payload_bytes", "time")


class Throughput:
    """Frame bytes of a run by node and direction (``up``, ``down``, ``peer``): all so far, and in the last seconds.

    Parameters
    ----------
    directory : Path
        The run's.
    """

    def __init__(self, directory: Path) -> None:
        self._tail = LedgerTail(directory, _COLUMNS)
        self._recent: dict[int, dict[tuple[str, str], int]] = {}
        self.bytes = dict.fromkeys(WAYS, 0)

    def look(self, now: float) -> bool:
        """Take in what is new as of ``now``, seconds since 1970; returns whether anything was. In any one thread."""
        import pyarrow as pa
        import pyarrow.compute as pc

        try:
            blocks = list(self._tail.fresh(_ROWS))
        except FarshoreError:  # its directory is not there yet, or no longer
            return False
        self._recent = {second: sums for second, sums in self._recent.items() if second >= now - WINDOW - 1}
        if not blocks:
            return False
        table = pa.Table.from_batches(blocks).unify_dictionaries()
        for row in totals(table, by=("direction",)).to_pylist():
            self.bytes[row["direction"]] += row["frame_bytes"]
        late = table.filter(pc.greater_equal(table["time"], now - WINDOW - 1))
        late = late.append_column("second", pc.floor(late["time"]))
        for row in totals(late, by=("second", "node", "direction")).to_pylist():
            sums = self._recent.setdefault(int(row["second"]), defaultdict(int))
            sums[row["node"], row["direction"]] += row["frame_bytes"]
        return True

    def rates(self, now: float) -> dict[tuple[str, str], float]:
        """Bytes per second by node and direction; who sent nothing lately is left out."""
        found: dict[tuple[str, str], float] = defaultdict(float)
        for second, sums in self._recent.items():
            if now - WINDOW - 1 <= second < now - 1:
                for key, count in sums.items():
                    found[key] += count / WINDOW
        return dict(found)
