"""The communication table of a run: per node, direction and kind, dense → payload → frame bytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from ..core.transfer import Transfer
from .output import amount


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

    def plus(self, other: Line | Transfer) -> Line:
        """This line with another, or one transfer, added."""
        if isinstance(other, Transfer):
            more = (1, other.dense_bytes, other.payload_bytes, other.frame_bytes)
        else:
            more = (other.frames, other.dense, other.payload, other.frame)
        mine = (self.frames, self.dense, self.payload, self.frame)
        return Line(self.node, self.direction, self.kind, *(a + b for a, b in zip(mine, more, strict=True)))


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
    def of(cls, transfers: Iterable[Transfer]) -> Communication:
        """Sum up transfers."""
        sums: dict[tuple[str, str, str], Line] = {}
        for t in transfers:
            key = (t.node, t.direction, t.kind)
            sums[key] = sums.get(key, Line(*key)).plus(t)
        order = sorted(sums.values(), key=lambda line: (line.node, line.direction != "up", -line.payload, line.kind))
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
        """Rows for people, the total last; see :data:`COLUMNS`."""
        return [_row(line) for line in (*self.lines, self.total)]


COLUMNS = ("node", "direction", "kind", "frames", "dense", "payload", "frame", "dense : payload")


def _row(line: Line) -> tuple[str, ...]:
    ratio = f"{line.dense / line.payload:.1f}" if line.payload else "–"
    sizes = (amount(line.dense), amount(line.payload), amount(line.frame))
    return (line.node or "all", line.direction or "–", line.kind or "–", f"{line.frames:,}", *sizes, ratio)
