"""One round over real nodes: sends the state, receives and sums the updates, and records why nodes are left out."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeAlias

from ...core.errors import PeerLostError, WireError
from ...core.message import Message
from ...core.session import ServerSession
from .assets import Assets, is_missing, offer_message
from .client_pool import Reply, RoundResult
from .messages import UpdateError
from .methods import Update
from .tree import NamedArrays, TreeSum

_NO_ANSWER = "no answer before the deadline"
_NOT_RECEIVING = "the node does not receive the state"

#: Decodes a message to a valid update and its summand, or raises :class:`UpdateError`.
ReadUpdate: TypeAlias = Callable[[Message], tuple[Update, NamedArrays]]
#: Returns the seconds until the deadline; None = no deadline.
Remaining: TypeAlias = Callable[[], float | None]


class NodeRound:
    """The nodes that a round waits for, and the sum so far.

    Parameters
    ----------
    session : ServerSession
    busy : dict
        Node -> the round of its outstanding request; updated here.
    new : set of str
        Nodes that may lack the assets; updated here.
    assets : Assets or None
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
        busy: dict[str, int],
        new: set[str],
        assets: Assets | None,
        message: Message,
        positions: dict[str, tuple[int, int]],
        read: ReadUpdate,
    ) -> None:
        self._session, self._busy, self._new, self._assets = session, busy, new, assets
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
        blocked = [n for n in list(self._waiting) if n not in self._busy and not self._request(n, 0.0)]
        for name in blocked:  # last, so that a node that does not receive cannot delay the others
            self._request(name, remaining())
        while self._waiting:
            try:
                others = [name for name in self._busy if name not in self._waiting]
                name, answer = self._session.receive_any([*self._waiting, *others], remaining())
            except PeerLostError as error:
                self._lost(error.name, str(error))
            except WireError as error:
                self._session.dismiss(error.name, str(error))
                self._lost(error.name, f"wire format error: {error}")
            except TimeoutError:
                self._deadline_passed()
            else:
                self._handle(name, answer, remaining)
        self._result.total = self._tree.total()
        self._result.replies = [self._replies[position] for position in sorted(self._replies)]
        self._result.seconds = self._seconds()
        return self._result

    def _request(self, name: str, timeout: float | None) -> bool:
        """Send a node the state, or first the offer of the assets; return False if it does not receive."""
        assets = self._assets if name in self._new else None
        message = offer_message(assets, self._round_index) if assets else self._message
        return self._send(name, message, timeout)

    def _send(self, name: str, message: Message, timeout: float | None) -> bool:
        """Send a node a message that it has to answer; return False if it does not receive in time."""
        try:
            self._session.channels[name].send(message, timeout)
        except PeerLostError as error:
            self._lost(name, str(error))
        except TimeoutError:
            return False
        else:
            self._busy[name] = self._round_index
        return True

    def _handle(self, name: str, answer: Message, remaining: Remaining) -> None:
        """Handle a node's answer: to an earlier round, to an offer, or an update of this round."""
        requested = self._busy.get(name, self._round_index)
        if answer.round < self._round_index or requested < self._round_index:
            self._drop(name, answer)
            if answer.round >= requested < self._round_index:
                del self._busy[name]  # idle now
                if name in self._waiting and not self._request(name, remaining()):
                    self._late(name, _NOT_RECEIVING)
        elif name in self._new:
            self._provide_assets(name, answer, remaining)
        else:
            self._add(name, answer)

    def _drop(self, name: str, answer: Message) -> None:
        if answer.kind == "update":
            self._result.dropped += 1
            self._log(f"dropped the late update of {name} for round {answer.round}")

    def _provide_assets(self, name: str, answer: Message, remaining: Remaining) -> None:
        """Send a node the assets if it lacks them, and then the state."""
        assert self._assets is not None
        self._busy.pop(name, None)
        try:
            payload = [self._assets.payload(self._round_index)] if is_missing(answer) else []
        except UpdateError as error:
            self._leave_out(name, str(error))
            return
        for message in (*payload, self._message):
            if not self._send(name, message, remaining()):
                self._busy.pop(name, None)  # the payload needs no answer
                self._late(name, _NOT_RECEIVING)
                return
            if name not in self._waiting:  # lost while sending
                return
        self._new.discard(name)

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
        self._busy.pop(name, None)
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
            requested = self._busy.get(name, self._round_index)
            busy = "" if requested == self._round_index else f", still busy with round {requested}"
            self._late(name, f"{_NO_ANSWER}{busy}")

    def _lost(self, name: str, why: str) -> None:
        self._busy.pop(name, None)
        if name in self._waiting:
            self._leave_out(name, why)

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
