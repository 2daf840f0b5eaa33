"""The clients of a run that are real nodes: each round the cohort gets the state and whoever answers is added up."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from ...core.errors import PeerLostError
from ...core.message import Message
from ...core.session import ServerSession
from .briefing import Briefing, offer, wants
from .codec import Codec
from .messages import UpdateError
from .methods import Method
from .tree import Part, TreeSum


@dataclass(frozen=True, slots=True)
class Reply:
    """What the server keeps of a client's update.

    Attributes
    ----------
    client : int
    samples, steps : int
    loss : float
        Mean over the client's steps.
    """

    client: int
    samples: int
    steps: int
    loss: float


@dataclass(slots=True)
class Gathered:
    """A round's outcome.

    Attributes
    ----------
    total : dict of arrays or None
        The sum of the contributions; None if nobody's came.
    replies : list of Reply
        In cohort order.
    missing : dict
        Client -> why nothing of it was added.
    seen : dict of arrays
        What clients got of the state that was sent: the same arrays unless the downlink's encoding lost something.
    """

    total: Part | None = None
    replies: list[Reply] = field(default_factory=list)
    missing: dict[int, str] = field(default_factory=dict)
    seen: Part = field(default_factory=dict)


class Fleet(Protocol):
    """Whoever does the clients' part of a run."""

    @property
    def population(self) -> int:
        """How many clients there are."""

    def round(self, number: int, cohort: Sequence[int], down: Part, method: Method) -> Gathered:
        """Have the cohort train from ``down`` and add up what it sends."""

    def keep(self, number: int) -> None:
        """Have every client that remembers something save it as of this round."""

    def done(self) -> None:
        """Say goodbye to all clients after the last round."""


class NodeFleet:
    """Nodes over the channels of a session; client ``i`` is the session's ``i``-th node.

    Parameters
    ----------
    session : ServerSession
    codec : Codec
    deadline : float
        Seconds that a round waits for replies; 0 = until everybody has answered or is lost.
    briefing : Briefing, optional
        What every node must hold before its first round.
    """

    def __init__(
        self, session: ServerSession, codec: Codec, deadline: float = 0.0, briefing: Briefing | None = None
    ) -> None:
        self._session, self._codec, self._deadline, self._briefing = session, codec, deadline, briefing
        self._names = list(session.channels)
        self._briefed: set[str] = set()

    @property
    def population(self) -> int:
        """How many nodes there are."""
        return len(self._names)

    def round(self, number: int, cohort: Sequence[int], down: Part, method: Method) -> Gathered:
        """See :class:`Fleet`; a node that is lost, late or sends what does not fit is left out, and named."""
        tree, gathered = TreeSum(len(cohort)), Gathered()
        replies: dict[int, Reply] = {}
        waiting = {self._names[client]: place for place, client in enumerate(cohort)}

        def leave_out(name: str, why: str) -> None:
            place = waiting.pop(name)
            tree.skip(place)
            gathered.missing[cohort[place]] = why
            self._session.log(f"round {number}: without {name}: {why}")

        message = self._codec.down(number, down)
        seen = self._codec.seen(message, down)  # what clients begin from, and updates are measured against
        for name in list(waiting):
            try:
                self._send(name, message)
            except PeerLostError as error:
                leave_out(name, str(error))
        end = time.monotonic() + self._deadline
        while waiting:
            try:
                left = max(0.0, end - time.monotonic()) if self._deadline else None
                name, answer = self._session.receive_any(list(waiting), left)
                if answer.round < number:  # of a round that did not wait for it
                    continue
                if self._awaits_answer(name):
                    self._brief(name, answer, message)
                    continue
                update = self._codec.read(answer, number, seen, method.reply(seen))
            except PeerLostError as error:
                leave_out(error.name, str(error))
            except TimeoutError:
                for name in list(waiting):
                    leave_out(name, f"no answer within {self._deadline:g} s")
            except UpdateError as error:
                leave_out(name, str(error))
            else:
                place = waiting.pop(name)
                tree.add(place, method.contribution(seen, update))
                replies[place] = Reply(cohort[place], update.samples, update.steps, update.loss)
        gathered.total, gathered.seen = tree.total(), seen
        gathered.replies = [replies[place] for place in sorted(replies)]
        return gathered

    def keep(self, number: int) -> None:
        """Tell all nodes to save what they remember."""
        self._tell_all(Message("control", round=number, fields={"what": "keep"}))

    def done(self) -> None:
        """Tell all nodes that the run is over."""
        self._tell_all(Message("control", fields={"what": "done"}))

    def _tell_all(self, message: Message) -> None:
        for channel in self._session.channels.values():
            with suppress(PeerLostError):
                channel.send(message)

    def _awaits_answer(self, name: str) -> bool:
        return self._briefing is not None and name not in self._briefed

    def _send(self, name: str, message: Message) -> None:
        """Send a state; to a node that comes new the offer, whose answer the state will follow."""
        if self._briefing is not None and self._awaits_answer(name):
            message = offer(self._briefing, message.round)
        self._session.channels[name].send(message)

    def _brief(self, name: str, answer: Message, message: Message) -> None:
        """Send a node what it lacks, and then the state."""
        channel = self._session.channels[name]
        try:
            if wants(answer) and self._briefing is not None:
                channel.send(self._briefing.goods(message.round))
            self._briefed.add(name)
            channel.send(message)
        except PeerLostError as error:
            error.name = name
            raise
