"""Decides which node gets which item; knows no channel and no clock, so that it can be tested without both.

Items are dealt in order. A node that is fast gets more of them, because it is free more often; while items are short,
it also gets some ahead of time, as many as it does in :data:`AHEAD_SECONDS`. Near the end, a node gets no item that the
others would finish before it, and an item that takes unusually long is dealt to a second node.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import fmean

#: Work that a node is given ahead of time, in seconds, and the largest number of such items.
AHEAD_SECONDS, MOST_AHEAD = 0.05, 8
#: How often an item may be on a node that is lost, before it counts as failed: it might be the cause.
MOST_LOSSES = 10
#: Least seconds after which a node that was not worth an item is considered again.
_SOONEST = 0.05
#: How many waiting items are assigned in thought, to see when the other nodes would finish them.
_MOST_FORESEEN = 256
_LOST = "{} nodes were lost while they worked on it"
#: Weight of the newest duration in a node's average.
_NEWEST = 0.3


@dataclass(frozen=True, slots=True, order=True)
class Attempt:
    """One attempt at an item.

    Attributes
    ----------
    deal : int
        Number of the attempt.
    index : int
        Of the item.
    """

    deal: int
    index: int
    node: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What follows from an answer.

    Attributes
    ----------
    index : int or None
        The item that is finished now, or failed for good; None if it is neither.
    error : str
        Why it failed for good.
    cancel : tuple of Attempt
        Other attempts at the item, which are to be cancelled.
    attempts : int
        How often the item was dealt.
    """

    index: int | None = None
    error: str = ""
    cancel: tuple[Attempt, ...] = ()
    attempts: int = 0


@dataclass
class _Item:
    attempts: dict[int, Attempt] = field(default_factory=dict)
    failures: list[tuple[str, str]] = field(default_factory=list)  # node and reason
    losses: int = 0
    dealt: int = 0


@dataclass
class _Node:
    """A node and its deals, oldest first: the first ``slots`` of them are in progress."""

    slots: int
    speed: float
    deals: dict[int, float] = field(default_factory=dict)  # when each began, or was dealt
    cancelled: set[int] = field(default_factory=set)
    seconds: float = 0.0  # moving average of an item's duration; 0 = unknown

    def free(self) -> int:
        """Slots without a deal; cancelled ones are about to be free."""
        return self.slots - len(self.deals)


class Dealer:
    """The state of a queue.

    Parameters
    ----------
    tries : int
        Times that an item may fail.
    straggler : float
        An item is dealt twice once it takes this many times its usual time; 0 = never.
    """

    def __init__(self, tries: int, straggler: float) -> None:
        self._tries, self._straggler = tries, straggler
        self._waiting: deque[int] = deque()
        self._items: dict[int, _Item] = {}
        self._nodes: dict[str, _Node] = {}
        self._attempts: dict[int, Attempt] = {}
        self._next_deal = 1

    # ---- what happens --------------------------------------------------------------------------------------------

    def add(self, indices: Iterable[int]) -> None:
        """Add items to the end of the queue."""
        for index in indices:
            self._items[index] = _Item()
            self._waiting.append(index)

    def join(self, node: str, slots: int, speed: float = 0.0) -> None:
        """Note that a node is ready for ``slots`` items; ``speed`` compares it with others, 0 = unknown."""
        self._nodes[node] = _Node(slots, speed)

    def lose(self, node: str) -> list[Verdict]:
        """Note that a node is lost; its items are dealt again. Returns the items that fail for good by that."""
        lost = self._nodes.pop(node, None)
        verdicts = []
        for deal in reversed(lost.deals if lost else {}):
            attempt = self._attempts.pop(deal)
            item = self._items.get(attempt.index)
            if item is None:  # finished by another node
                continue
            del item.attempts[deal]
            item.losses += 1
            if item.attempts:
                continue
            if item.losses >= MOST_LOSSES:
                del self._items[attempt.index]
                verdicts.append(Verdict(attempt.index, _LOST.format(item.losses), (), item.dealt))
            else:
                self._waiting.appendleft(attempt.index)
        return verdicts

    def finish(self, node: str, deal: int, seconds: float, now: float) -> Verdict:
        """Note the result of a deal. Of several results of an item, the first one finishes it."""
        attempt = self._close(node, deal, now)
        if attempt is None:
            return Verdict()
        found = self._nodes[node]
        found.seconds = seconds if not found.seconds else found.seconds + _NEWEST * (seconds - found.seconds)
        item = self._items.pop(attempt.index, None)
        if item is None:
            return Verdict()
        return Verdict(attempt.index, "", self._cancel(item, deal), item.dealt)

    def fail(self, node: str, deal: int, reason: str, now: float) -> Verdict:
        """Note that a deal failed. The item is dealt again, to another node if possible, unless it failed too often."""
        attempt = self._close(node, deal, now)
        item = self._items.get(attempt.index) if attempt is not None else None
        if attempt is None or item is None:
            return Verdict()
        del item.attempts[deal]
        item.failures.append((node, reason))
        if len(item.failures) >= self._tries:
            del self._items[attempt.index]
            times = f" ({len(item.failures)} times, last on {node})" if len(item.failures) > 1 else f" (on {node})"
            return Verdict(attempt.index, reason + times, self._cancel(item, deal), item.dealt)
        if not item.attempts:
            self._waiting.appendleft(attempt.index)
        return Verdict()

    def stop(self, node: str, deal: int, now: float) -> None:
        """Note that a cancelled deal has ended."""
        self._close(node, deal, now)

    def _close(self, node: str, deal: int, now: float) -> Attempt | None:
        """Remove a deal from its node; the next one of the node begins. None if the node has no such deal."""
        found = self._nodes.get(node)
        if found is None or deal not in found.deals:
            return None
        del found.deals[deal]
        found.cancelled.discard(deal)
        for position, other in enumerate(found.deals):
            if position == found.slots - 1:
                found.deals[other] = max(found.deals[other], now)
        return self._attempts.pop(deal)

    def _cancel(self, item: _Item, deal: int) -> tuple[Attempt, ...]:
        others = tuple(attempt for number, attempt in item.attempts.items() if number != deal)
        for attempt in others:
            self._nodes[attempt.node].cancelled.add(attempt.deal)
        return others

    # ---- what to do ----------------------------------------------------------------------------------------------

    @property
    def unfinished(self) -> int:
        """Items that are neither finished nor failed for good."""
        return len(self._items)

    def running(self) -> Mapping[int, list[str]]:
        """Nodes that work on each unfinished item."""
        found: dict[int, list[str]] = {}
        for attempt in self._attempts.values():
            if attempt.index in self._items:
                found.setdefault(attempt.index, []).append(attempt.node)
        return dict(sorted(found.items()))

    def next(self, now: float) -> Attempt | None:
        """Deal an item to a node; None if no node is to get one now."""
        if self._waiting:
            for name in self._by_need(now):
                if (index := self._choose(name, now)) is not None:
                    self._waiting.remove(index)
                    return self._deal(index, name, now)
        return self._second(now)

    def wake(self, now: float) -> float | None:
        """Seconds until :meth:`next` may have more to do although nothing happened; None = never."""
        if self._waiting:
            able = [self.expected(name) for name, node in self._nodes.items() if node.free() > 0]
            return max(_SOONEST, min(able)) if able else None
        if not self._straggler:
            return None
        due = [
            max(0.0, at - now)
            for name, node in self._nodes.items()
            if node.free() > 0
            for at, _ in self._due(name, now)
        ]
        return min(due, default=None)

    def expected(self, node: str) -> float:
        """Seconds that an item takes on a node, as far as known; 0 = unknown."""
        found = self._nodes[node]
        if found.seconds:
            return found.seconds
        known = [other for other in self._nodes.values() if other.seconds]
        if not known:
            return 0.0
        if found.speed and all(other.speed for other in known):
            return fmean(other.seconds * other.speed for other in known) / found.speed
        return fmean(other.seconds for other in known)

    def _by_need(self, now: float) -> list[str]:
        """Nodes that may get an item: those with free slots before those that get one ahead, fast ones first."""
        able = [(name, node) for name, node in self._nodes.items() if node.free() + self._ahead(name) > 0]
        able.sort(key=lambda pair: (-pair[1].free() / pair[1].slots, self.expected(pair[0])))
        return [name for name, _ in able]

    def _ahead(self, name: str) -> int:
        """How many items a node may have ahead of time; few near the end, so that all nodes are busy until then."""
        node = self._nodes[name]
        if not node.seconds:
            return 0
        fair = len(self._waiting) // sum(each.slots for each in self._nodes.values())
        return min(MOST_AHEAD, int(AHEAD_SECONDS / node.seconds), fair) * node.slots

    def _choose(self, name: str, now: float) -> int | None:
        """The first waiting item that a node may get: it did not fail there while another node is left to try."""
        worth_it: bool | None = None
        for index in self._waiting:
            failed_on = {node for node, _ in self._items[index].failures}
            if not failed_on:
                worth_it = self._is_worth_it(name, now) if worth_it is None else worth_it
                if worth_it:
                    return index
            elif name not in failed_on or failed_on >= self._nodes.keys():
                return index
        return None

    def _is_worth_it(self, name: str, now: float) -> bool:
        """Whether the other nodes would not finish all waiting items before this one finishes its next."""
        own, others = self.expected(name), [other for other in self._nodes if other != name]
        if not own or not others or not all(map(self.expected, others)):
            return True
        end = min(self._slot_ends(name, now)) + own
        rate = sum(self._nodes[other].slots / self.expected(other) for other in others)
        if now + len(self._waiting) / rate >= end:  # a lower bound of what follows, and cheap
            return True
        heap = [
            (at + self.expected(other), self.expected(other)) for other in others for at in self._slot_ends(other, now)
        ]
        heapq.heapify(heap)
        last = now
        for _ in range(min(len(self._waiting), _MOST_FORESEEN)):
            last, seconds = heap[0]
            heapq.heapreplace(heap, (last + seconds, seconds))
        return last >= end

    def _slot_ends(self, name: str, now: float) -> list[float]:
        """When each slot of a node will be free; a heap."""
        node, seconds = self._nodes[name], self.expected(name)
        begun = list(node.deals.values())
        # What is overdue is expected to take as long again.
        ends = [began + seconds if began + seconds > now else 2 * now - began for began in begun[: node.slots]]
        ends += [now] * (node.slots - len(ends))
        heapq.heapify(ends)
        for _ in begun[node.slots :]:
            heapq.heapreplace(ends, ends[0] + seconds)
        return ends

    def _second(self, now: float) -> Attempt | None:
        """Deal an item that takes too long to a second node."""
        if self._waiting or not self._straggler:
            return None
        for name in self._by_need(now):
            late = [(at, attempt.deal, attempt) for at, attempt in self._due(name, now) if at <= now]
            if late and self._nodes[name].free() > 0:
                return self._deal(min(late)[2].index, name, now)
        return None

    def _due(self, name: str, now: float) -> Iterator[tuple[float, Attempt]]:
        """Yield when a second attempt on a node at each item in progress elsewhere becomes worthwhile."""
        own = self.expected(name)
        for other, node in self._nodes.items():
            usual = self.expected(other)
            if other == name or not usual or not own:
                continue
            for deal, began in node.deals.items():
                attempt = self._attempts[deal]
                item = self._items.get(attempt.index)
                if item is None or len(item.attempts) > 1 or any(failed_on == name for failed_on, _ in item.failures):
                    continue
                is_slow_node = began + usual - now > self._straggler * own
                yield (now if is_slow_node else began + self._straggler * usual), attempt

    def _deal(self, index: int, name: str, now: float) -> Attempt:
        attempt = Attempt(self._next_deal, index, name)
        self._next_deal += 1
        self._attempts[attempt.deal] = attempt
        item, node = self._items[index], self._nodes[name]
        item.attempts[attempt.deal] = attempt
        item.dealt += 1
        node.deals[attempt.deal] = now
        return attempt
