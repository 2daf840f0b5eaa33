"""The communication table of a run: per node, direction and kind, dense → payload → frame bytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .output import amount

#: Acknowledgements, signs of life and control messages, taken together.
NO_TENSORS = "(no tensors)"


@dataclass(frozen=True, slots=True)
class Line:
    """Sums over transfers.

    Attributes
    ----------
    node, direction, kind : str
        What is summed over; empty where it is everything.
    frames : int
        How many transfers.
    dense, payload, frame : int
        Bytes; see :class:`~farshore.core.transfer.Transfer`.
    """

    node: str
    direction: str
    kind: str
    frames: int = 0
    dense: int = 0
    payload: int = 0
    frame: int = 0

    def plus(self, other: Line) -> Line:
        """This line with another added."""
        mine = (self.frames, self.dense, self.payload, self.frame)
        more = (other.frames, other.dense, other.payload, other.frame)
        return Line(self.node, self.direction, self.kind, *map(sum, zip(mine, more, strict=True)))


@dataclass(frozen=True, slots=True)
class Communication:
    """What a run cost on the wire.

    Attributes
    ----------
    lines : tuple of Line
        One per node, direction and kind; by node, uplink first, the largest first.
    """

    lines: tuple[Line, ...]

    @classmethod
    def of_run(cls, directory: Path) -> Communication:
        """Sum up the ledger in a run directory.

        Raises
        ------
        MissingExtraError
            pyarrow is not installed.
        NotFoundError, StorageError
            There is no run in it, or its ledger cannot be read.
        """
        from ..runs.ledger import read_ledger, totals

        sums = totals(read_ledger(directory), by=("node", "direction", "kind")).to_pylist()
        return cls._sorted(
            Line(
                row["node"],
                row["direction"],
                row["kind"],
                row["frames"],
                row["dense_bytes"],
                row["payload_bytes"],
                row["frame_bytes"],
            )
            for row in sums
        )

    @classmethod
    def _sorted(cls, lines: Iterable[Line]) -> Communication:
        order = sorted(lines, key=lambda line: (line.node, line.direction != "up", -line.payload, line.kind))
        return cls(tuple(order))

    @property
    def total(self) -> Line:
        """The sum of all lines."""
        total = Line("", "", "")
        for line in self.lines:
            total = total.plus(line)
        return total

    def as_dicts(self) -> list[dict[str, Any]]:
        """The lines, JSON-able."""
        return [asdict(line) for line in self.lines]

    def rows(self) -> list[tuple[str, ...]]:
        """Rows for people, see :data:`COLUMNS`: tensorless kinds in one per node and direction, the total last."""
        shown: dict[tuple[str, str, str], Line] = {}
        for line in self.lines:
            key = (line.node, line.direction, line.kind if line.payload else NO_TENSORS)
            shown[key] = shown.get(key, Line(*key)).plus(line)
        return [_row(line) for line in (*shown.values(), self.total)]


COLUMNS = ("node", "direction", "kind", "frames", "dense", "payload", "frame", "dense : payload")


def _row(line: Line) -> tuple[str, ...]:
    ratio = f"{line.dense / line.payload:.1f}" if line.payload else "–"
    sizes = (amount(line.dense), amount(line.payload), amount(line.frame))
    return (line.node or "all", line.direction or "–", line.kind or "–", f"{line.frames:,}", *sizes, ratio)
