"""The clients of a run that are real nodes: they die, come back, are late, hang and send what they should not."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeAlias

from ...core.errors import PeerLostError, WireError
from ...core.message import Message
from ...core.session import ServerSession
from .fleet import Gathered, Reply
from .messages import Encodings, UpdateError, arrays, as_it_arrives, check_size, model_message, read_update
from .methods import Method, Update
from .tree import Part, TreeSum

_NO_ANSWER = "no answer before the deadline"

#: An update that may be added, and what it is as a summand; raises :class:`UpdateError`.
Read: TypeAlias = Callable[[Message], tuple[Update, Part]]


class NodeFleet:
    """Nodes over the channels of a session; client ``i`` is the session's ``i``-th node.

    A node that still works on an earlier round is sent nothing more until it has answered: so a program that hangs
    holds one state at most and blocks nobody, and one that is slow does not train on what is long past.

    Parameters
    ----------
    session : ServerSession
    encodings : Encodings
        Of the state.
    least : int
        A round waits until so many nodes are there.
    deadline : float
        Seconds that a round waits for replies; 0 = until everybody has answered or is lost.
    largest_norm : float
        See :func:`~farshore.algorithms.federated.messages.check_size`.
    """

    def __init__(
        self,
        session: ServerSession,
        encodings: Encodings,
        *,
        least: int = 1,
        deadline: float = 0.0,
        largest_norm: float = 0.0,
    ) -> None:
        self._session, self._encodings = session, encodings
        self._least, self._deadline, self._largest_norm = least, deadline, largest_norm
        self._names = list(session.channels)
        #: Node -> the round in which it was asked for what it has not answered yet.
        self._busy: dict[str, int] = {}

    @property
    def population(self) -> int:
        """How many nodes there are, lost ones included."""
        return len(self._names)

    def round(self, number: int, cohort: Sequence[int], down: Part, method: Method) -> Gathered:
        """See :class:`~farshore.algorithms.federated.fleet.Fleet`.

        A node that is lost, late or sends what does not fit is left out, and named in the run's log.
        """
        for name in self._session.readmit(self._least):
            self._busy.pop(name, None)
        message = model_message(number, down, self._encodings)
        seen = arrays(as_it_arrives(message))  # what clients begin from, and updates are measured against

        def read(answer: Message) -> tuple[Update, Part]:
            update = read_update(answer, number, method.reply(seen))
            part = method.contribution(seen, update)
            check_size(seen, update, part, self._largest_norm)
            return update, part

        asked = {self._names[client]: (place, client) for place, client in enumerate(cohort)}
        return _Round(self._session, self._busy, number, asked, read).play(message, self._patience())

    def keep(self, number: int) -> None:
        """Have all nodes that are free save what they remember, and wait until they have."""
        left, owing = self._patience(), []
        for name, channel in self._session.channels.items():
            with suppress(PeerLostError, TimeoutError):
                if name not in self._busy:
                    channel.send(Message("control", round=number, fields={"what": "keep"}), 0.0)
                    owing.append(name)
        while owing:
            try:
                name, _ = self._session.receive_any(owing, left())
            except PeerLostError as error:
                name = error.name
            except WireError as error:
                name = error.name
                self._session.dismiss(name, str(error))
            except TimeoutError:
                self._busy |= dict.fromkeys(owing, number)
                self._session.log(f"round {number}: {', '.join(owing)} did not say in time that it kept its memory")
                return
            owing.remove(name)

    def end(self) -> None:
        """Send everybody home; whoever still works is not waited for."""
        for name, channel in self._session.channels.items():
            with suppress(PeerLostError):
                try:
                    if name not in self._busy:
                        channel.send(Message("control", fields={"what": "done"}), 0.0)
                        continue
                except TimeoutError:
                    pass
                self._session.dismiss(name, "the run has finished")

    def _patience(self) -> Callable[[], float | None]:
        """Seconds that are left from now on; None = any."""
        end = time.monotonic() + self._deadline
        return lambda: max(0.0, end - time.monotonic()) if self._deadline else None


class _Round:
    """One round over nodes: whom it waits for, and the sum so far."""

    def __init__(
        self, session: ServerSession, busy: dict[str, int], number: int, asked: dict[str, tuple[int, int]], read: Read
    ) -> None:
        self._session, self._busy, self._number, self._read = session, busy, number, read
        #: Node -> its place in the cohort, and its number; in cohort order.
        self._waiting = dict(asked)
        self._tree, self._gathered = TreeSum(len(asked)), Gathered()
        self._replies: dict[int, Reply] = {}

    def play(self, message: Message, left: Callable[[], float | None]) -> Gathered:
        """Ask everybody, and wait for whoever has not answered while there is time left."""
        full = [n for n in list(self._waiting) if n not in self._busy and not self._send(n, message, 0.0)]
        for name in full:  # first those with room, or one that takes nothing would hold up the others
            self._send(name, message, left())
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
                for name in list(self._waiting):
                    owed = self._busy.get(name, self._number)
                    self._late(
                        name, _NO_ANSWER if owed == self._number else f"{_NO_ANSWER}, it is still at round {owed}"
                    )
            else:
                if self._answered(name, answer) and name in self._waiting and not self._send(name, message, left()):
                    self._late(name, "it does not take the state")
        self._gathered.total = self._tree.total()
        self._gathered.replies = [self._replies[place] for place in sorted(self._replies)]
        return self._gathered

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

    def _answered(self, name: str, answer: Message) -> bool:
        """Take an answer; whether the node is free now and has not been asked yet in this round."""
        owed = self._busy.get(name, self._number)
        if answer.round < self._number or owed < self._number:
            if answer.kind == "update":
                self._gathered.dropped += 1
                self._log(f"dropped what {name} sent of round {answer.round}: too late")
            if answer.round >= owed < self._number:
                del self._busy[name]
                return True
            return False
        self._busy.pop(name, None)
        place, client = self._waiting[name]
        try:
            update, part = self._read(answer)
        except UpdateError as error:
            self._leave_out(name, str(error))
        else:
            del self._waiting[name]
            self._tree.add(place, part)
            self._replies[place] = Reply(client, update.samples, update.steps, update.loss)
        return False

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
