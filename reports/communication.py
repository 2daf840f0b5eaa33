"""Communication volume of a run: what crossed, by node, direction, kind and encoding, and against what it is small."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from ..runs.ledger import totals

if TYPE_CHECKING:
    import pyarrow as pa

Column: TypeAlias = Literal["node", "direction", "kind", "encoding"]
COLUMNS: tuple[Column, ...] = ("node", "direction", "kind", "encoding")


@dataclass(frozen=True, slots=True)
class Row:
    """Sums over transfers.

    Attributes
    ----------
    node, direction, kind, encoding : str
        What the transfers have in common; empty where that column is summed over.
    frames : int
        How many there were.
    dense_bytes, payload_bytes, frame_bytes : int
        As in :class:`~farshore.core.transfer.Transfer`.
    """

    node: str = ""
    direction: str = ""
    kind: str = ""
    encoding: str = ""
    frames: int = 0
    dense_bytes: int = 0
    payload_bytes: int = 0
    frame_bytes: int = 0

    @property
    def ratio(self) -> float | None:
        """Dense / payload bytes: what the encodings alone saved; None where nothing was sent."""
        return self.dense_bytes / self.payload_bytes if self.payload_bytes else None

    def plus(self, other: Row) -> Row:
        """This row with the sizes of another added."""
        return replace(
            self,
            frames=self.frames + other.frames,
            dense_bytes=self.dense_bytes + other.dense_bytes,
            payload_bytes=self.payload_bytes + other.payload_bytes,
            frame_bytes=self.frame_bytes + other.frame_bytes,
        )


@dataclass(frozen=True, slots=True)
class CommunicationReport:
    """What a run cost on the wire. Everything that was sent counts: side data, set-up, evaluation, repetitions.

    Attributes
    ----------
    rows : tuple of Row
        The finest sums, one per node, direction, kind and encoding.
    baselines : Mapping[str, int]
        Payload bytes that other ways would have sent for the same work, by their names.
    socket_bytes : Mapping[str, int]
        Bytes that the operating system counted, HTTP/2, TLS and TCP included, by direction (``up``, ``down``); empty
        where nobody measured. Shown beside the others, never mixed in.
    """

    rows: tuple[Row, ...]
    baselines: Mapping[str, int] = field(default_factory=dict)
    socket_bytes: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        ledger: pa.Table,
        baselines: Mapping[str, int] | None = None,
        socket_bytes: Mapping[str, int] | None = None,
    ) -> CommunicationReport:
        """Sum up a ledger, as :func:`~farshore.runs.ledger.read_ledger` gives it."""
        rows = tuple(Row(**values) for values in totals(ledger, COLUMNS).to_pylist())
        return cls(_in_order(rows), dict(baselines or {}), dict(socket_bytes or {}))

    @property
    def total(self) -> Row:
        """The sum of everything."""
        total = Row()
        for row in self.rows:
            total = total.plus(row)
        return total

    def by(self, *columns: Column) -> tuple[Row, ...]:
        """Sums over all rows that agree in ``columns``; by node, uplink first, the largest first."""
        sums: dict[tuple[str, ...], Row] = {}
        for row in self.rows:
            names = {column: getattr(row, column) for column in columns}
            key = tuple(names.values())
            sums[key] = sums.get(key, Row(**names)).plus(row)
        return _in_order(sums.values())

    @property
    def compression(self) -> dict[str, float | None]:
        """A baseline's payload bytes over this run's, side data included, by baseline; None where nothing was sent."""
        payload = self.total.payload_bytes
        return {name: size / payload if payload else None for name, size in self.baselines.items()}

    def as_dict(self) -> dict[str, Any]:
        """JSON-able: ``rows``, ``total``, ``by_direction``, ``baselines``, ``compression``, ``socket_bytes``."""
        return {
            "rows": [_as_dict(row, COLUMNS) for row in self.rows],
            "by_direction": [_as_dict(row, ("direction",)) for row in self.by("direction")],
            "total": _as_dict(self.total, ()),
            "baselines": dict(self.baselines),
            "compression": self.compression,
            "socket_bytes": dict(self.socket_bytes) or None,
        }


def _in_order(rows: Iterable[Row]) -> tuple[Row, ...]:
    return tuple(sorted(rows, key=lambda r: (r.node, r.direction != "up", -r.payload_bytes, r.kind, r.encoding)))


def _as_dict(row: Row, columns: Iterable[Column]) -> dict[str, Any]:
    values = asdict(row)
    for column in COLUMNS:
        if column not in columns:
            del values[column]
    return values | {"ratio": row.ratio}
