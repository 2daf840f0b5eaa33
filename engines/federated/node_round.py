"""One round over real nodes: sends the state, receives and sums the updates, and records why nodes are left out."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeAlias

from ...core.errors import WireError
from ...core.expectations import Expected
from ...core.message import Message
from ...core.session import ServerSession
from ..assets.offer import AssetOffer
from ..requests import Answer, Failure, Remaining, Requests
from .client_pool import Reply, RoundResult
from .messages import UPDATE, UpdateError
from .methods import FederatedMethod, Update
from .tree import NamedArrays, TreeSum

_NO_ANSWER = "no answer before the deadline"
#: How much larger than expected an update may be.
_SLACK, _SLACK_BYTES = 4, 1 << 16
_NOT_RECEIVING = "the node does not receive the state"

#: Decodes a message to a valid update and its summand, or raises :class:`UpdateError`.
ReadUpdate: TypeAlias = Callable[[Message], tuple[Update, NamedArrays]]


def bound_updates(session: ServerSession, method: FederatedMethod, down: NamedArrays) -> None:
    """Accept no update from any node that decodes to much more bytes than the method's reply to the state ``down``.

    An update of a wrong dtype or shape is still read, so that the reason for which it is left out names the tensor.
    """
    size = sum(array.nbytes for array in method.reply(down).values())
    for channel in session.channels.values():
        channel.expect({UPDATE: Expected(dense_bytes=_SLACK * size + _SLACK_BYTES)})


class NodeRound:
    """The nodes that a round waits for, and the sum so far.

    Parameters
    ----------
    session : ServerSession
    requests : Requests
        Outstanding requests, those of earlier rounds included.
    new : set of str
        Nodes that may lack the assets; updated here.
    offer : AssetOffer or None
        What new nodes need before their first round.
    message : Message
        The state.
    positions : dict
        Node -> its position in the cohort, and its client number; in cohort order.
    read : callable
        See :data:`ReadUpdate`.
    """

    def __init__(
        self,
        session: ServerSession,
        requests: Requests,
        new: set[str],
        offer: AssetOffer | None,
        message: Message,
        positions: dict[str, tuple[int, int]],
        read: ReadUpdate,
    ) -> None:
        self._session, self._requests, self._new, self._offer = session, requests, new, offer
        self._message, self._round_index, self._read = message, message.round, read
        #: Nodes without a result yet -> position in the cohort, and client number.
        self._waiting = dict(positions)
        self._tree, self._result = TreeSum(len(positions)), RoundResult()
        self._replies: dict[int, Reply] = {}
        self._start = time.monotonic()
        self._first_reply = 0.0
        self._aggregation_seconds = 0.0

    def run(self, remaining: Remaining) -> RoundResult:
        """Send the state to the cohort and receive updates until all have replied or the deadline has passed."""
        idle = [name for name in self._waiting if name not in self._requests.pending]
        blocked = [name for name in idle if not self._request(name, 0.0)]
        for name in blocked:  # last, so that a node that does not receive cannot delay the others
            self._request(name, remaining())
        while self._waiting:
            outcome = self._requests.next(self._waiting.keys() | self._requests.pending.keys(), remaining())
            if outcome is None:
                self._deadline_passed()
            elif isinstance(outcome, Failure):
                self._failed(outcome)
            else:
                self._handle(outcome, remaining)
        self._result.total = self._tree.total()
        self._result.replies = [self._replies[position] for position in sorted(self._replies)]
        self._result.seconds = self._seconds()
        return self._result

    def _request(self, name: str, timeout: float | None) -> bool:
        """Send a node the state, or first the offer of the assets; return False if it does not receive."""
        offer = self._offer if name in self._new else None
        return self._ask(name, offer.message(self._round_index) if offer else self._message, timeout)

    def _ask(self, name: str, message: Message, timeout: float | None) -> bool:
        """Send a node a message that it has to answer; return False if it does not receive in time."""
        try:
            failure = self._requests.ask(name, message, timeout)
        except TimeoutError:
            return False
        if failure is not None:
            self._failed(failure)
        return True

    def _handle(self, answer: Answer, remaining: Remaining) -> None:
        """Handle a node's answer: to an earlier round, to the offer of assets, or an update of this round."""
        name = answer.node
        request = self._round_index if answer.request is None else answer.request
        if answer.message.round < self._round_index or request < self._round_index:
            self._drop(name, answer.message)
            idle = answer.final and answer.request is not None
            if idle and name in self._waiting and not self._request(name, remaining()):
                self._late(name, _NOT_RECEIVING)
        elif name in self._new:
            self._provide_assets(name, answer.message, remaining)
        else:
            self._add(name, answer.message)

    def _drop(self, name: str, answer: Message) -> None:
        if answer.kind == UPDATE:
            self._result.dropped += 1
            self._log(f"dropped the late update of {name} for round {answer.round}")

    def _provide_assets(self, name: str, answer: Message, remaining: Remaining) -> None:
        """Send a node the part of the assets that it asks for, or the state if it holds all of them."""
        assert self._offer is not None
        try:
            chunks = self._offer.reply(answer, name)
        except WireError as error:
            self._leave_out(name, str(error))
            return
        if chunks is None:
            self._new.discard(name)
        for message in (self._message,) if chunks is None else chunks:
            if not self._ask(name, message, remaining()):
                self._late(name, _NOT_RECEIVING)
            if name not in self._waiting:
                return

    def _seconds(self) -> dict[str, float]:
        now = time.monotonic()
        first = self._first_reply or now
        return {
            "train": first - self._start,
            "wait": max(0.0, now - first - self._aggregation_seconds),
            "aggregate": self._aggregation_seconds,
        }

    def _add(self, name: str, answer: Message) -> None:
        start = time.monotonic()
        self._first_reply = self._first_reply or start
        self._aggregate(name, answer)
        self._aggregation_seconds += time.monotonic() - start

    def _aggregate(self, name: str, answer: Message) -> None:
        position, client = self._waiting[name]
        try:
            update, part = self._read(answer)
        except UpdateError as error:
            self._leave_out(name, str(error))
        else:
            del self._waiting[name]
            self._tree.add(position, part)
            self._replies[position] = Reply.from_update(client, update)

    def _deadline_passed(self) -> None:
        for name in list(self._waiting):
            request = self._requests.pending.get(name, self._round_index)
            busy = "" if request == self._round_index else f", still busy with round {request}"
            self._late(name, f"{_NO_ANSWER}{busy}")

    def _failed(self, failure: Failure) -> None:
        if failure.node in self._waiting:
            self._leave_out(failure.node, failure.reason)

    def _late(self, name: str, why: str) -> None:
        self._result.late.append(self._waiting[name][1])
        self._leave_out(name, why)

    def _leave_out(self, name: str, why: str) -> None:
        position, client = self._waiting.pop(name)
        self._tree.skip(position)
        self._result.missing[client] = why
        self._log(f"{name} left out: {why}")

    def _log(self, line: str) -> None:
        self._session.log(f"round {self._round_index}: {line}")
