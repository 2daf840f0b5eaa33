"""Communication volume of a run: sums over its ledger, and compression against named baselines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ..core.errors import NotFoundError
from ..runs.ledger_reader import totals
from ..runs.traffic import CHANNEL_KINDS

if TYPE_CHECKING:
    import pyarrow as pa

_GROUPS = ("node", "direction", "kind", "encoding")
_SIZES = ("frames", "dense_bytes", "payload_bytes", "frame_bytes")
_PLACE = (*_GROUPS, "round", "step", "micro")


@dataclass(frozen=True, slots=True)
class Volume:
    """Sums over transfers.

    Attributes
    ----------
    frames : int
        How many.
    dense_bytes, payload_bytes, frame_bytes : int
        Bytes; see :class:`farshore.core.transfer.Transfer`.
    """

    frames: int = 0
    dense_bytes: int = 0
    payload_bytes: int = 0
    frame_bytes: int = 0

    def __add__(self, other: Volume) -> Volume:
        return Volume(*(getattr(self, name) + getattr(other, name) for name in _SIZES))

    def __sub__(self, other: Volume) -> Volume:
        return Volume(*(getattr(self, name) - getattr(other, name) for name in _SIZES))

    @property
    def ratio(self) -> float | None:
        """Dense bytes / payload bytes, or None where no payload was sent."""
        return self.dense_bytes / self.payload_bytes if self.payload_bytes else None

    @property
    def overhead(self) -> float | None:
        """Share of the frame bytes that is prefix and header, or None where nothing was sent."""
        return 1 - self.payload_bytes / self.frame_bytes if self.frame_bytes else None

    def as_dict(self) -> dict[str, Any]:
        """JSON-able, with ``ratio`` and ``overhead``."""
        return {**asdict(self), "ratio": self.ratio, "overhead": self.overhead}


@dataclass(frozen=True, slots=True)
class Line:
    """The volume of one group of transfers; a name is empty where the group spans all of them."""

    volume: Volume
    node: str = ""
    direction: str = ""
    kind: str = ""
    encoding: str = ""

    def as_dict(self) -> dict[str, Any]:
        """JSON-able; names that are empty are left out."""
        names = {name: getattr(self, name) for name in _GROUPS if getattr(self, name)}
        return {**names, **self.volume.as_dict()}


@dataclass(frozen=True, slots=True)
class CommunicationReport:
    """Every byte of a run.

    ``total = once + repeated + channel``.

    Attributes
    ----------
    total : Volume
        All transfers.
    once : Volume
        The method's messages, each counted once: what the run had cost without a restart.
    repeated : Volume
        Messages that were sent again, after a restart, in a later attempt.
    channel : Volume
        Acknowledgements, signs of life, greetings and retransmissions.
    by_node, by_direction, by_kind, by_encoding : tuple of Line
        All transfers, by one thing.
    lines : tuple of Line
        All transfers by node, direction and kind.
    once_by_kind : tuple of Line
        What ``once`` is made of.
    socket_bytes : Mapping[str, int]
        Bytes on the sockets by direction, HTTP/2 and TLS included, where they were measured; never part of the sums.
    """

    total: Volume
    once: Volume
    repeated: Volume
    channel: Volume
    by_node: tuple[Line, ...]
    by_direction: tuple[Line, ...]
    by_kind: tuple[Line, ...]
    by_encoding: tuple[Line, ...]
    lines: tuple[Line, ...]
    once_by_kind: tuple[Line, ...]
    socket_bytes: Mapping[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        volumes = {name: getattr(self, name).as_dict() for name in ("total", "once", "repeated", "channel")}
        names = ("by_node", "by_direction", "by_kind", "by_encoding", "lines", "once_by_kind")
        lines = {name: [line.as_dict() for line in getattr(self, name)] for name in names}
        return {**volumes, **lines, "socket_bytes": dict(self.socket_bytes)}


@dataclass(frozen=True, slots=True)
class Compression:
    """How much less a run sent than a baseline.

    Attributes
    ----------
    baseline : str
        The baseline's name, e.g. ``vanilla split learning``.
    baseline_bytes : int
        Its dense bytes for the same training.
    payload_bytes : int
        What the run sent, side data included, each message once.
    kinds : tuple of str
        The kinds of messages that were counted; empty = all of the method's.
    """

    baseline: str
    baseline_bytes: int
    payload_bytes: int
    kinds: tuple[str, ...] = ()

    @property
    def ratio(self) -> float | None:
        """Baseline bytes / payload bytes, or None where no payload was sent."""
        return self.baseline_bytes / self.payload_bytes if self.payload_bytes else None

    def as_dict(self) -> dict[str, Any]:
        """JSON-able, with ``ratio``."""
        return {**asdict(self), "kinds": list(self.kinds), "ratio": self.ratio}


def communication(ledger: pa.Table, socket_bytes: Mapping[str, int] | None = None) -> CommunicationReport:
    """Sum up a run's ledger.

    Parameters
    ----------
    ledger : pyarrow.Table
        From :func:`farshore.runs.ledger_reader.read_ledger`.
    socket_bytes : Mapping[str, int], optional
        Bytes on the sockets, by ``up`` and ``down``.
    """
    groups = _lines(totals(ledger, _GROUPS), _GROUPS)
    once = [line for line in _lines(last_attempts(ledger, _GROUPS), _GROUPS) if line.kind not in CHANNEL_KINDS]
    channel = _sum(line for line in groups if line.kind in CHANNEL_KINDS)
    total = _sum(groups)
    by = {name: _regroup(groups, (name,)) for name in _GROUPS}
    return CommunicationReport(
        total=total,
        once=_sum(once),
        repeated=total - channel - _sum(once),
        channel=channel,
        by_node=by["node"],
        by_direction=_uplink_first(by["direction"]),
        by_kind=by["kind"],
        by_encoding=by["encoding"],
        lines=_uplink_first(_regroup(groups, ("node", "direction", "kind"))),
        once_by_kind=_regroup(once, ("kind",)),
        socket_bytes=dict(socket_bytes or {}),
    )


def compression(
    report: CommunicationReport, baseline: str, baseline_bytes: int, kinds: Sequence[str] = ()
) -> Compression:
    """Compare a run with a baseline.

    Compression is always dense bytes of the named baseline / payload bytes, side data included. Messages that a restart
    sent again count once, because the baseline had no restart.

    Parameters
    ----------
    report : CommunicationReport
    baseline : str
        Its name.
    baseline_bytes : int
        Its dense bytes, from the method, which knows the shapes.
    kinds : sequence of str
        Count only these kinds, where the baseline has nothing beside the others; all of the method's by default.

    Raises
    ------
    NotFoundError
        The run sent no message of one of ``kinds``.
    """
    sent = {line.kind: line.volume.payload_bytes for line in report.once_by_kind}
    if missing := [kind for kind in kinds if kind not in sent]:
        raise NotFoundError(f"the run sent no '{missing[0]}'", cure=f"it sent these kinds: {', '.join(sent) or 'none'}")
    payload = sum(sent[kind] for kind in dict.fromkeys(kinds or sent))
    return Compression(baseline, baseline_bytes, payload, tuple(dict.fromkeys(kinds)))


def compressions(report: CommunicationReport, baselines: Mapping[str, int]) -> tuple[Compression, ...]:
    """Compare a run with each of several baselines, given as name and dense bytes."""
    return tuple(compression(report, name, size) for name, size in baselines.items())


def last_attempts(ledger: pa.Table, by: Sequence[str]) -> pa.Table:
    """Sums by columns over the last attempt at every message: what a run sends that nothing restarts.

    Parameters
    ----------
    ledger : pyarrow.Table
    by : sequence of str
        Columns that tell messages apart: node, direction, kind, encoding, round, step, micro.
    """
    import pyarrow.compute as pc

    if not pc.any(pc.greater(ledger["attempt"], 0)).as_py():
        return totals(ledger, by)
    attempts = totals(ledger, (*_PLACE, "attempt")).sort_by("attempt")
    # One thread: "last" means something in the order of the rows only.
    last = attempts.group_by(list(_PLACE), use_threads=False).aggregate([(name, "last") for name in _SIZES])
    summed = last.group_by(list(by), use_threads=False).aggregate([(f"{name}_last", "sum") for name in _SIZES])
    names = {f"{name}_last_sum": name for name in _SIZES}
    return summed.rename_columns([names.get(name, name) for name in summed.column_names])


def _lines(table: pa.Table, by: Sequence[str]) -> list[Line]:
    rows = table.to_pylist()
    return [Line(Volume(*(row[name] for name in _SIZES)), **{name: row[name] for name in by}) for row in rows]


def _sum(lines: Iterable[Line]) -> Volume:
    return sum((line.volume for line in lines), Volume())


def _regroup(lines: Iterable[Line], by: Sequence[str]) -> tuple[Line, ...]:
    sums: dict[tuple[str, ...], Volume] = {}
    for line in lines:
        key = tuple(getattr(line, name) for name in by)
        sums[key] = sums.get(key, Volume()) + line.volume
    return tuple(Line(sums[key], **dict(zip(by, key, strict=True))) for key in sorted(sums))


def _uplink_first(lines: Sequence[Line]) -> tuple[Line, ...]:
    return tuple(sorted(lines, key=lambda line: (line.node, line.direction != "up", line.kind)))
