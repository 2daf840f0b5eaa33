"""One round over real nodes: who is asked, who answers what, and why somebody is left out."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeAlias

from ...core.errors import PeerLostError, WireError
from ...core.message import Message
from ...core.session import ServerSession
from .assets import Assets, offer, wants
from .client_pool import Reply, RoundResult
from .messages import UpdateError
from .methods import Update
from .tree import Part, TreeSum

_NO_ANSWER = "no answer before the deadline"
_FULL = "it does not take the state"

#: An update that may be added, and what it is as a summand; raises :class:`UpdateError`.
Read: TypeAlias = Callable[[Message], tuple[Update, Part]]
#: Seconds that are left; None = any.
Left: TypeAlias = Callable[[], float | None]


class NodeRound:
    """Whom a round waits for, and the sum so far.

    Parameters
    ----------
    session : ServerSession
    busy : dict
        Node -> the round in which it was asked for what it has not answered yet; changed here.
    new : set of str
        Nodes that may lack what they must hold; changed here.
    briefing : Briefing or None
    message : Message
        The state.
    asked : dict
        Node -> its place in the cohort, and its number.
    read : callable
    """

    def __init__(
        self,
        session: ServerSession,
        busy: dict[str, int],
        new: set[str],
        briefing: Assets | None,
        message: Message,
        asked: dict[str, tuple[int, int]],
        read: Read,
    ) -> None:
        self._session, self._busy, self._new, self._briefing = session, busy, new, briefing
        self._message, self._number, self._read = message, message.round, read
        #: Node -> its place in the cohort, and its number; in cohort order.
        self._waiting = dict(asked)
        self._tree, self._gathered = TreeSum(len(asked)), RoundResult()
        self._replies: dict[int, Reply] = {}
        self._began = time.monotonic()
        self._first = 0.0
        self._adding = 0.0

    def play(self, left: Left) -> RoundResult:
        """Ask everybody, and wait for whoever has not answered while there is time left."""
        full = [n for n in list(self._waiting) if n not in self._busy and not self._ask(n, 0.0)]
        for name in full:  # first those with room, or one that takes nothing would hold up the others
            self._ask(name, left())
        while self._waiting:
            try:
                others = [name for name in self._busy if name not in self._waiting]
                name, answer = self._session.receive_any([*self._waiting, *others], left())
            except PeerLostError as error:
                self._gone(error.name, str(error))
            except WireError as error:
                self._session.dismiss(error.name, str(error))
                self._gone(error.name, f"it broke the wire format: {error}")
            except TimeoutError:
                self._all_late()
            else:
                self._take(name, answer, left)
        self._gathered.total = self._tree.total()
        self._gathered.replies = [self._replies[place] for place in sorted(self._replies)]
        self._gathered.seconds = self._seconds()
        return self._gathered

    def _ask(self, name: str, timeout: float | None) -> bool:
        """Send a node the state, or first what it must hold for it; False if it has no room."""
        brief = self._briefing if name in self._new else None
        message = offer(brief, self._number) if brief else self._message
        return self._send(name, message, timeout)

    def _send(self, name: str, message: Message, timeout: float | None) -> bool:
        """Send a node the state; False if it has no room for it."""
        try:
            self._session.channels[name].send(message, timeout)
        except PeerLostError as error:
            self._gone(name, str(error))
        except TimeoutError:
            return False
        else:
            self._busy[name] = self._number
        return True

    def _take(self, name: str, answer: Message, left: Left) -> None:
        """Take what a node says: of an earlier round, to an offer, or its update."""
        owed = self._busy.get(name, self._number)
        if answer.round < self._number or owed < self._number:
            self._drop(name, answer)
            if answer.round >= owed < self._number:
                del self._busy[name]  # it is free now
                if name in self._waiting and not self._ask(name, left()):
                    self._late(name, _FULL)
        elif name in self._new:
            self._brief(name, answer, left)
        else:
            self._add(name, answer)

    def _drop(self, name: str, answer: Message) -> None:
        if answer.kind == "update":
            self._gathered.dropped += 1
            self._log(f"dropped what {name} sent of round {answer.round}: too late")

    def _brief(self, name: str, answer: Message, left: Left) -> None:
        """Send a node what it lacks, and then the state."""
        assert self._briefing is not None
        self._busy.pop(name, None)
        try:
            goods = [self._briefing.goods(self._number)] if wants(answer) else []
        except UpdateError as error:
            self._leave_out(name, str(error))
            return
        for message in (*goods, self._message):
            if not self._send(name, message, left()):
                self._busy.pop(name, None)  # it owes no answer to what it holds
                self._late(name, _FULL)
                return
            if name not in self._waiting:  # it is gone
                return
        self._new.discard(name)

    def _seconds(self) -> dict[str, float]:
        now = time.monotonic()
        first = self._first or now
        return {
            "train": first - self._began,
            "wait": max(0.0, now - first - self._adding),
            "aggregate": self._adding,
        }

    def _add(self, name: str, answer: Message) -> None:
        began = time.monotonic()
        self._first = self._first or began
        self._fold(name, answer)
        self._adding += time.monotonic() - began

    def _fold(self, name: str, answer: Message) -> None:
        self._busy.pop(name, None)
        place, client = self._waiting[name]
        try:
            update, part = self._read(answer)
        except UpdateError as error:
            self._leave_out(name, str(error))
        else:
            del self._waiting[name]
            self._tree.add(place, part)
            self._replies[place] = Reply.of(client, update)

    def _all_late(self) -> None:
        for name in list(self._waiting):
            owed = self._busy.get(name, self._number)
            self._late(name, _NO_ANSWER if owed == self._number else f"{_NO_ANSWER}, it is still at round {owed}")

    def _gone(self, name: str, why: str) -> None:
        self._busy.pop(name, None)
        if name in self._waiting:
            self._leave_out(name, why)

    def _late(self, name: str, why: str) -> None:
        self._gathered.late.append(self._waiting[name][1])
        self._leave_out(name, why)

    def _leave_out(self, name: str, why: str) -> None:
        place, client = self._waiting.pop(name)
        self._tree.skip(place)
        self._gathered.missing[client] = why
        self._log(f"without {name}: {why}")

    def _log(self, line: str) -> None:
        self._session.log(f"round {self._number}: {line}")
