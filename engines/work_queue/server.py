"""The server program of a work queue: deals items, records results, reports progress."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from ...core.bounds import MAX_ERROR, cut
from ...core.errors import ConfigError, PeerLostError, WireError
from ...core.message import Message
from ...core.nodes import NodeChange
from ...core.session import ServerSession
from ..assets.asset import FileSource
from ..assets.offer import AssetOffer
from ..assets.protocol import Fetch, Ready
from .config import WorkQueueConfig
from .dealer import Attempt, Dealer, Verdict
from .item import ItemResult, Outcome, WorkItem
from .protocol import FROM_NODE, Cancel, Deal, End, Failed, Hello, Result, Stopped
from .records import Records
from .workload import WorkQueueWorkload

#: Most messages that are handled before the results among them are made durable.
_BATCH = 64
#: Most nodes and failures that a progress report names.
_MOST_SHOWN = 4


def serve(workload: WorkQueueWorkload[Any], session: ServerSession, config: WorkQueueConfig) -> dict[str, Any]:
    """Deal all items of a method, and return what it makes of their results."""
    return _Server(workload, session, config).run()


class _Server:
    def __init__(self, workload: WorkQueueWorkload[Any], session: ServerSession, config: WorkQueueConfig) -> None:
        self._workload, self._session, self._config = workload, session, config
        self._records = Records(session)
        sources = [FileSource(session.data(name), name) for name in workload.inputs(config)]
        self._inputs = {source.asset.name: source.asset.digest for source in sources}
        self._offer = AssetOffer(sources) if sources else None
        self._items: list[WorkItem] = []
        self._dealer = Dealer(config.tries, config.straggler)
        self._fresh: list[ItemResult] = []  # not durable yet
        self._failures: dict[int, str] = {}
        self._slots: dict[str, int] = {}

    def run(self) -> dict[str, Any]:
        """Deal wave after wave of items."""
        while items := self._next_items():
            first = len(self._items)
            self._items += items
            self._dealer.add(i for i, item in enumerate(items, first) if item not in self._records)
            self._failures.update(
                (i, self._records.results[item.identity].error)
                for i, item in enumerate(items, first)
                if item in self._records and self._records.results[item.identity].error
            )
            self._work()
        for node in self._session.channels:  # also those that have just joined
            self._send(node, End().message())
        return self._workload.summarize(self._config, self._results(), self._session)

    def _next_items(self) -> Sequence[WorkItem]:
        items = list(self._workload.items(self._config, self._inputs, self._results()))
        known = {item.identity for item in self._items}
        for item in items:
            if item.identity in known:
                raise ConfigError(f"the queue has an item twice: {json.dumps(dict(item.config))[:200]}")
            known.add(item.identity)
        return items

    def _results(self) -> list[ItemResult]:
        return [self._records.results[item.identity] for item in self._items]

    # ---- the loop ------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        """Deal until all items so far are finished or have failed."""
        self._deal()
        self._report()
        while self._dealer.unfinished:
            self._session.check_cancelled()
            timeout = self._dealer.wake(time.monotonic())
            for _ in range(_BATCH):
                received = self._receive(timeout)
                self._deal()
                if not received:
                    break
                timeout = 0.0
            self._commit()

    def _receive(self, timeout: float | None) -> bool:
        """Handle the next message or change of the cohort; returns whether there was one."""
        try:
            node, got = self._session.receive_any(timeout=timeout, changes=True)
        except TimeoutError:
            return False
        except WireError as error:
            self._refuse(error.name, error)
            return True
        if isinstance(got, NodeChange):
            if got.kind == "lost":
                self._lose(node, got.reason)
            return True
        try:
            self._handle(node, got)
        except WireError as error:
            self._refuse(node, error)
        return True

    def _handle(self, node: str, message: Message) -> None:
        now = time.monotonic()
        match FROM_NODE.read(message, f"node {node}"):
            case Hello(slots=slots):
                self._slots[node] = slots
                if self._offer is None:
                    self._join(node)
                else:
                    self._send(node, self._offer.message())
            case Fetch() | Ready():
                self._send_inputs(node, message)
            case Result(deal=deal, seconds=seconds) as result:
                outcome = result.outcome({n: t.array for n, t in message.tensors.items()}, f"node {node}")
                self._close(self._dealer.finish(node, deal, seconds, now), node, outcome, seconds)
            case Failed(deal=deal, reason=text):
                reason = cut(text, MAX_ERROR)
                self._session.log(f"item {message.step} failed on {node}: {reason}")
                self._close(self._dealer.fail(node, deal, reason, now), node)
            case Stopped(deal=deal):
                self._dealer.stop(node, deal, now)

    def _send_inputs(self, node: str, message: Message) -> None:
        if self._offer is None:
            raise WireError(f"node {node}: asked for inputs of a queue without any")
        chunks = self._offer.reply(message, f"node {node}")
        if chunks is None:
            self._join(node)
        for chunk in chunks or ():
            self._send(node, chunk)

    def _join(self, node: str) -> None:
        self._dealer.join(node, self._slots[node], self._session.nodes[node].profile.matmul_gflops)

    def _lose(self, node: str, reason: str) -> None:
        self._slots.pop(node, None)
        self._session.log(f"node {node} is lost, its items are dealt again: {reason}")
        for verdict in self._dealer.lose(node):
            self._close(verdict, node)

    def _refuse(self, node: str, error: WireError) -> None:
        self._session.dismiss(node, str(error))
        self._lose(node, str(error))

    # ---- dealing -------------------------------------------------------------------------------------------------

    def _deal(self) -> None:
        while (attempt := self._dealer.next(time.monotonic())) is not None:
            item = self._items[attempt.index]
            deal = Deal(attempt.deal, json.dumps(dict(item.config)), item.seed, tuple(item.inputs))
            self._send(attempt.node, deal.message(step=attempt.index + 1))

    def _send(self, node: str, message: Message) -> None:
        with suppress(PeerLostError):  # the loss is reported by the cohort
            self._session.channels[node].send(message)

    def _close(self, verdict: Verdict, node: str, outcome: Outcome | None = None, seconds: float = 0.0) -> None:
        """Keep the result of an item, if it has one now, and cancel other attempts at it."""
        for other in verdict.cancel:
            self._cancel(other)
        if (index := verdict.index) is None:
            return
        if verdict.error:
            self._failures[index] = verdict.error
        item = self._items[index]
        self._fresh.append(ItemResult(index, item, outcome, verdict.error, node, seconds, verdict.attempts))

    def _cancel(self, attempt: Attempt) -> None:
        self._send(attempt.node, Cancel(attempt.deal).message(step=attempt.index + 1))

    # ---- recording -----------------------------------------------------------------------------------------------

    def _commit(self) -> None:
        """Make fresh results durable, and report them."""
        if self._fresh:
            fresh, self._fresh = self._fresh, []
            before = len(self._records)
            self._records.add(fresh)
            for number, result in enumerate(fresh, before + 1):
                self._session.metrics(number, item=result.index, **_numbers(result))
        self._report()

    def _report(self) -> None:
        done, total = len(self._items) - self._dealer.unfinished, len(self._items)
        values = {"unit": "item", "running": self._where()}
        self._session.progress(done, total, **values, **self._failed())

    def _where(self) -> str:
        """Describe where items are running: ``3 on a, 1 on b``."""
        counts: dict[str, int] = {}
        for nodes in self._dealer.running().values():
            for node in nodes:
                counts[node] = counts.get(node, 0) + 1
        shown = [f"{count} on {node}" for node, count in sorted(counts.items())]
        more = [f"{len(shown) - _MOST_SHOWN} more nodes"] if len(shown) > _MOST_SHOWN else []
        return ", ".join([*shown[:_MOST_SHOWN], *more])

    def _failed(self) -> dict[str, float | str]:
        if not self._failures:
            return {}
        index, reason = next(iter(self._failures.items()))
        return {"failed_items": float(len(self._failures)), "why": f"item {index + 1}: {reason}"[:150]}


def _numbers(result: ItemResult) -> Mapping[str, float]:
    outcome = result.outcome or Outcome()
    numbers = {n: float(v) for n, v in outcome.metrics.items() if not isinstance(v, str) and n not in ("item", "step")}
    return {**numbers, "item_seconds": result.seconds}
