"""What an app's run tells as it goes on: replies and failures of each round, and the means of what clients report."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field

from ...core.session import ServerSession
from .compat import ErrorCode, Message, MetricRecord

#: The key by which Flower's strategies weight what clients report.
_WEIGHT = "num-examples"


@dataclass(slots=True)
class _Round:
    replies: int = 0
    failures: int = 0
    #: Nodes by what became of what they were asked: a node that failed once has failed.
    ok: set[int] = field(default_factory=set)
    late: set[int] = field(default_factory=set)
    failed: set[int] = field(default_factory=set)
    sums: dict[str, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0, 0.0]))


class RoundMetrics:
    """Counts replies; a round is told once a reply of a later one comes, and at the end.

    Parameters
    ----------
    session : ServerSession
    rounds : int
        How many there will be; 0 = unknown.
    """

    def __init__(self, session: ServerSession, rounds: int) -> None:
        self._session, self._rounds = session, rounds
        self._number, self._current = 0, _Round()
        self._told_at = time.monotonic()

    def add(self, reply: Message, number: int) -> None:
        """Take a reply of round ``number`` into account."""
        if number > self._number:
            self.tell()
            self._number, self._current = number, _Round()
        node = reply.metadata.src_node_id
        if reply.has_error():
            self._current.failures += 1
            expired = reply.error.code == ErrorCode.REPLY_MESSAGE_UNAVAILABLE
            (self._current.late if expired else self._current.failed).add(node)
            return
        self._current.replies += 1
        self._current.ok.add(node)
        what = reply.metadata.message_type.partition(".")[0]
        for record in reply.content.values():
            if isinstance(record, MetricRecord):
                weight = record.get(_WEIGHT, 1)
                self._add(what, record, float(weight) if isinstance(weight, int | float) else 1.0)

    def _add(self, what: str, record: MetricRecord, weight: float) -> None:
        for name, value in record.items():
            if name != _WEIGHT and isinstance(value, int | float):
                total = self._current.sums[f"{what}_{name}"]
                total[0] += weight * value
                total[1] += weight

    def tell(self) -> None:
        """Report the round so far."""
        current = self._current
        if not current.replies + current.failures:
            return
        means = {name: total / weight for name, (total, weight) in current.sums.items() if weight}
        losses = [mean for name, mean in means.items() if name.startswith("train_") and "loss" in name]
        self._session.metrics(self._number, replies=current.replies, failures=current.failures, **means)
        told: dict[str, float] = {"loss": losses[0]} if losses else {}
        clients = {"failed": len(current.failed), "late": len(current.late - current.failed)}
        clients = {"ok": len(current.ok - current.failed - current.late), **clients}
        now = time.monotonic()
        told |= {**clients, "seconds": now - self._told_at}
        self._told_at = now
        self._session.progress(self._number, max(self._rounds, self._number), unit="round", **told)
