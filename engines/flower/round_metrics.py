"""Per-round metrics of a Flower app's run: replies, failures and weighted means of the clients' metrics."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field

from ...core.session import ServerSession
from .compat import ErrorCode, Message, MetricRecord
from .server_metrics import flat_metrics

#: The metric by which Flower's strategies weight clients.
_WEIGHT = "num-examples"


@dataclass(slots=True)
class _Round:
    replies: int = 0
    failures: int = 0
    #: Node ids by outcome; a node can be in several sets, and "failed" takes precedence over "late" over "ok".
    ok: set[int] = field(default_factory=set)
    late: set[int] = field(default_factory=set)
    failed: set[int] = field(default_factory=set)
    sums: dict[str, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0, 0.0]))


class RoundMetrics:
    """Collects replies and reports a round when the first reply of a later round arrives, and at the end.

    Parameters
    ----------
    session : ServerSession
        Receives metrics and progress.
    rounds : int
        Number of rounds; 0 = unknown.
    """

    def __init__(self, session: ServerSession, rounds: int) -> None:
        self._session, self._rounds = session, rounds
        self._round_index, self._current = 0, _Round()
        self._reported_at = time.monotonic()
        #: The newest mean of each metric.
        self.last: dict[str, float] = {}

    def add(self, reply: Message, round_index: int) -> None:
        """Add a reply of round ``round_index``."""
        if round_index > self._round_index:
            self.report()
            self._round_index, self._current = round_index, _Round()
        node = reply.metadata.src_node_id
        if reply.has_error():
            self._current.failures += 1
            expired = reply.error.code == ErrorCode.REPLY_MESSAGE_UNAVAILABLE
            (self._current.late if expired else self._current.failed).add(node)
            return
        self._current.replies += 1
        self._current.ok.add(node)
        message_type = reply.metadata.message_type.partition(".")[0]
        for record in reply.content.values():
            if isinstance(record, MetricRecord):
                weight = record.get(_WEIGHT, 1)
                self._add(message_type, record, float(weight) if isinstance(weight, int | float) else 1.0)

    def _add(self, message_type: str, record: MetricRecord, weight: float) -> None:
        for name, value in flat_metrics(f"{message_type}_", record).items():
            if name != f"{message_type}_{_WEIGHT}":
                total = self._current.sums[name]
                total[0] += weight * value
                total[1] += weight

    def report(self) -> None:
        """Report metrics and progress of the current round, if it has any replies."""
        current = self._current
        if not current.replies + current.failures:
            return
        means = {name: total / weight for name, (total, weight) in current.sums.items() if weight}
        self.last |= means
        losses = [mean for name, mean in means.items() if name.startswith("train_") and "loss" in name]
        self._session.metrics(self._round_index, replies=current.replies, failures=current.failures, **means)
        values: dict[str, float] = {"loss": losses[0]} if losses else {}
        clients = {"failed": len(current.failed), "late": len(current.late - current.failed)}
        clients = {"ok": len(current.ok - current.failed - current.late), **clients}
        now = time.monotonic()
        values |= {**clients, "seconds": now - self._reported_at}
        self._reported_at = now
        self._session.progress(self._round_index, max(self._rounds, self._round_index), unit="round", **values)
