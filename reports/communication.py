"""Communication volume of a run, and its compression relative to named baselines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..core.errors import NotFoundError
from ..runs.directory import RunDirectory
from .account import CHANNEL, ONCE, REPEATED, SIZES, Account

_GROUPS = ("node", "direction", "kind", "encoding")


@dataclass(frozen=True, slots=True)
class Volume:
    """Totals over a set of transfers.

    Attributes
    ----------
    frames : int
        Number of transfers.
    dense_bytes, payload_bytes, frame_bytes : int
        See :class:`farshore.core.transfer.Transfer`.
    """

    frames: int = 0
    dense_bytes: int = 0
    payload_bytes: int = 0
    frame_bytes: int = 0

    def __add__(self, other: Volume) -> Volume:
        return Volume(*(getattr(self, name) + getattr(other, name) for name in SIZES))

    def __sub__(self, other: Volume) -> Volume:
        return Volume(*(getattr(self, name) - getattr(other, name) for name in SIZES))

    @property
    def ratio(self) -> float | None:
        """Dense bytes / payload bytes, or None without payload."""
        return self.dense_bytes / self.payload_bytes if self.payload_bytes else None

    @property
    def overhead(self) -> float | None:
        """Prefix and header bytes / frame bytes, or None without frames."""
        return 1 - self.payload_bytes / self.frame_bytes if self.frame_bytes else None

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON-serializable dict, including ``ratio`` and ``overhead``."""
        return {**asdict(self), "ratio": self.ratio, "overhead": self.overhead}


@dataclass(frozen=True, slots=True)
class Line:
    """The volume of one group of transfers; an empty field means that the group spans all of its values."""

    volume: Volume
    node: str = ""
    direction: str = ""
    kind: str = ""
    encoding: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON-serializable dict without the empty fields."""
        names = {name: getattr(self, name) for name in _GROUPS if getattr(self, name)}
        return {**names, **self.volume.as_dict()}


@dataclass(frozen=True, slots=True)
class CommunicationReport:
    """The communication volume of a run, in total and by node, direction, kind and encoding.

    ``total = once + repeated + channel``.

    Attributes
    ----------
    total : Volume
        All transfers.
    once : Volume
        The method's messages, each counted once: the volume of the run without a restart.
    repeated : Volume
        Messages that a later attempt sent again after a restart.
    channel : Volume
        The channels' own frames: acknowledgements, heartbeats, hello frames and retransmissions.
    by_node, by_direction, by_kind, by_encoding : tuple of Line
        All transfers, grouped by one field.
    lines : tuple of Line
        All transfers by node, direction and kind.
    once_by_kind : tuple of Line
        ``once`` by kind.
    socket_bytes : Mapping[str, int]
        Bytes on the sockets by direction, including HTTP/2 and TLS; empty if not measured. Not part of the totals.
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
        """Return a JSON-serializable dict."""
        volumes = {name: getattr(self, name).as_dict() for name in ("total", "once", "repeated", "channel")}
        names = ("by_node", "by_direction", "by_kind", "by_encoding", "lines", "once_by_kind")
        lines = {name: [line.as_dict() for line in getattr(self, name)] for name in names}
        return {**volumes, **lines, "socket_bytes": dict(self.socket_bytes)}


@dataclass(frozen=True, slots=True)
class Compression:
    """Compression of a run relative to a baseline.

    Attributes
    ----------
    baseline : str
        Name of the baseline, e.g. ``vanilla split learning``.
    baseline_bytes : int
        Dense bytes that the baseline sends for the same training.
    payload_bytes : int
        Payload bytes of the run, including side data; each message counts once.
    kinds : tuple of str
        Kinds of messages that were counted; empty: all kinds of the method.
    """

    baseline: str
    baseline_bytes: int
    payload_bytes: int
    kinds: tuple[str, ...] = ()

    @property
    def ratio(self) -> float | None:
        """Baseline bytes / payload bytes, or None without payload."""
        return self.baseline_bytes / self.payload_bytes if self.payload_bytes else None

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON-serializable dict, including ``ratio``."""
        return {**asdict(self), "kinds": list(self.kinds), "ratio": self.ratio}


def communication(account: Account, socket_bytes: Mapping[str, int] | None = None) -> CommunicationReport:
    """Build the communication report of a run.

    Parameters
    ----------
    account : Account
        Sums of the run's ledger.
    socket_bytes : Mapping[str, int], optional
        Bytes on the sockets by direction (``up``, ``down``).
    """
    part = {name: _sum(_lines(account.by("part", parts=[name]))) for name in (ONCE, REPEATED, CHANNEL)}
    return CommunicationReport(
        total=part[ONCE] + part[REPEATED] + part[CHANNEL],
        once=part[ONCE],
        repeated=part[REPEATED],
        channel=part[CHANNEL],
        by_node=_lines(account.by("node")),
        by_direction=_uplink_first(_lines(account.by("direction"))),
        by_kind=_lines(account.by("kind")),
        by_encoding=_lines(account.by("encoding")),
        lines=_uplink_first(_lines(account.by("node", "direction", "kind"))),
        once_by_kind=_lines(account.by("kind", parts=[ONCE])),
        socket_bytes=dict(socket_bytes or {}),
    )


def communication_of(run: RunDirectory) -> CommunicationReport:
    """Read the communication report of a run directory.

    Raises
    ------
    MissingExtraError
        pyarrow is not installed.
    StorageError
        The ledger cannot be read.
    """
    return communication(Account.read(run.path), run.socket_bytes())


def compression(
    report: CommunicationReport, baseline: str, baseline_bytes: int, kinds: Sequence[str] = ()
) -> Compression:
    """Compute the compression of a run relative to a baseline.

    Compression is the dense bytes of the named baseline / payload bytes, side data included. Messages that were sent
    again after a restart count once, because the baseline has no restart.

    Parameters
    ----------
    report : CommunicationReport
    baseline : str
        Name of the baseline.
    baseline_bytes : int
        Its dense bytes; the method computes them from the tensor shapes.
    kinds : sequence of str
        Count only these kinds, if the baseline has no counterpart of the others; all kinds of the method by default.

    Raises
    ------
    NotFoundError
        The run sent no message of a kind in ``kinds``.
    """
    sent = {line.kind: line.volume.payload_bytes for line in report.once_by_kind}
    if missing := [kind for kind in kinds if kind not in sent]:
        raise NotFoundError(
            f"the run sent no message of kind '{missing[0]}'", hint=f"kinds it sent: {', '.join(sent) or 'none'}"
        )
    payload = sum(sent[kind] for kind in dict.fromkeys(kinds or sent))
    return Compression(baseline, baseline_bytes, payload, tuple(dict.fromkeys(kinds)))


def compressions(report: CommunicationReport, baselines: Mapping[str, int]) -> tuple[Compression, ...]:
    """Compute the compression of a run relative to each of several baselines, given as name → dense bytes."""
    return tuple(compression(report, name, size) for name, size in baselines.items())


def _lines(rows: Iterable[Mapping[str, Any]]) -> tuple[Line, ...]:
    return tuple(
        Line(Volume(*(row[name] for name in SIZES)), **{name: row[name] for name in _GROUPS if name in row})
        for row in rows
    )


def _sum(lines: Iterable[Line]) -> Volume:
    return sum((line.volume for line in lines), Volume())


def _uplink_first(lines: Sequence[Line]) -> tuple[Line, ...]:
    return tuple(sorted(lines, key=lambda line: (line.node, line.direction != "up", line.kind)))
