"""The clients of a run that are real nodes: each round the cohort gets the state and whoever answers is added up."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ...core.errors import PeerLostError
from ...core.message import Message
from ...core.seeds import Seed
from ...core.session import ServerSession
from .messages import Encodings, UpdateError, arrays, as_it_arrives, model_message, read_update
from .methods import Method
from .tree import Part, TreeSum


def cohort(seed: Seed, number: int, population: int, size: int) -> list[int]:
    """The clients of a round, ascending: drawn without replacement by run seed and round alone, whatever the method."""
    drawn = seed.child("cohort", number).numpy().choice(population, size=size, replace=False, shuffle=False)
    return sorted(int(client) for client in drawn)


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
    figures : dict
        What else there is to tell of the round.
    """

    total: Part | None = None
    replies: list[Reply] = field(default_factory=list)
    missing: dict[int, str] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Arrival:
    """What came of one client's training, where nobody waits for a whole cohort.

    Attributes
    ----------
    client, number : int
        ``number`` is what the model was sent as.
    proposal : dict of arrays or None
        The state that the server would have, had it waited for this reply alone; None if there is none.
    seen : dict of arrays
        The state that the client began from.
    reply : Reply or None
    missing : str
        Why there is no proposal.
    gone : bool
        It will never answer again.
    """

    client: int
    number: int
    proposal: Part | None
    seen: Part
    reply: Reply | None = None
    missing: str = ""
    gone: bool = False


class Stream(Protocol):
    """Clients that train one by one; each trains one state at a time."""

    def send(self, client: int, number: int, down: Part) -> None:
        """Have a client train from ``down`` in round ``number``."""

    def next(self) -> Arrival:
        """Wait for the next outcome of what was sent."""

    def figures(self) -> dict[str, float]:
        """What there is to tell, besides the replies, since the last call."""


class Fleet(Protocol):
    """Whoever does the clients' part of a run."""

    @property
    def population(self) -> int:
        """How many clients there are."""

    def draw(self, seed: Seed, number: int, size: int) -> list[int]:
        """Whom round ``number`` asks so that ``size`` may answer, ascending; ``seed`` is the run's."""

    def resume(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Go on after the rounds of ``history``."""

    def round(self, number: int, cohort: Sequence[int], down: Part, method: Method) -> Gathered:
        """Have the cohort train from ``down`` and add up what it sends."""

    def stream(self, method: Method) -> Stream:
        """The same clients, one by one."""

    def keep(self, number: int) -> None:
        """Have every client that remembers something save it as of this round."""


class NodeFleet:
    """Nodes over the channels of a session; client ``i`` is the session's ``i``-th node.

    Parameters
    ----------
    session : ServerSession
    encodings : Encodings
        Of the state.
    deadline : float
        Seconds that a round waits for replies; 0 = until everybody has answered or is lost.
    """

    def __init__(self, session: ServerSession, encodings: Encodings, deadline: float = 0.0) -> None:
        self._session, self._encodings, self._deadline = session, encodings, deadline
        self._names = list(session.channels)

    @property
    def population(self) -> int:
        """How many nodes there are."""
        return len(self._names)

    def draw(self, seed: Seed, number: int, size: int) -> list[int]:
        """Any nodes."""
        return cohort(seed, number, self.population, size)

    def resume(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Nothing: nodes resume by themselves."""

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

        message = model_message(number, down, self._encodings)
        seen = arrays(as_it_arrives(message))  # what clients begin from, and updates are measured against
        for name in list(waiting):
            try:
                self._session.channels[name].send(message)
            except PeerLostError as error:
                leave_out(name, str(error))
        end = time.monotonic() + self._deadline
        while waiting:
            try:
                left = max(0.0, end - time.monotonic()) if self._deadline else None
                name, answer = self._session.receive_any(list(waiting), left)
                if answer.round < number:  # of a round that did not wait for it
                    continue
                update = read_update(answer, number, method.reply(seen))
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
        gathered.total = tree.total()
        gathered.replies = [replies[place] for place in sorted(replies)]
        return gathered

    def stream(self, method: Method) -> Stream:
        """The nodes, whose replies are taken as they come."""
        return NodeStream(self._session, self._encodings, method)

    def keep(self, number: int) -> None:
        """Tell all nodes to save what they remember."""
        for channel in self._session.channels.values():
            try:
                channel.send(Message("control", round=number, fields={"what": "keep"}))
            except PeerLostError:
                continue


class NodeStream:
    """Nodes over the channels of a session, one by one; see :class:`Stream`."""

    def __init__(self, session: ServerSession, encodings: Encodings, method: Method) -> None:
        self._session, self._encodings, self._method = session, encodings, method
        self._names = list(session.channels)
        self._clients = {name: client for client, name in enumerate(self._names)}
        self._jobs: dict[str, tuple[int, Part]] = {}
        self._lost: list[PeerLostError] = []
        self._version: tuple[int, Message, Part] | None = None

    def send(self, client: int, number: int, down: Part) -> None:
        """Send the state; whoever is lost is told of by :meth:`next`."""
        if self._version is None or self._version[0] != number:  # one copy for all that begin from a version
            message = model_message(number, down, self._encodings)
            self._version = number, message, arrays(as_it_arrives(message))
        name = self._names[client]
        self._jobs[name] = number, self._version[2]
        try:
            self._session.channels[name].send(self._version[1])
        except PeerLostError as error:
            error.name = name
            self._lost.append(error)

    def next(self) -> Arrival:
        """The next reply of any node."""
        try:
            if self._lost:
                raise self._lost.pop()
            name, answer = self._session.receive_any(list(self._jobs))
        except PeerLostError as error:
            number, seen = self._jobs.pop(error.name)
            return Arrival(self._clients[error.name], number, None, seen, missing=str(error), gone=True)
        number, seen = self._jobs.pop(name)
        client = self._clients[name]
        try:
            update = read_update(answer, number, self._method.reply(seen))
        except UpdateError as error:
            return Arrival(client, number, None, seen, missing=str(error))
        proposal = self._method.finish(seen, self._method.contribution(seen, update), len(self._names))
        return Arrival(client, number, proposal, seen, Reply(client, update.samples, update.steps, update.loss))

    def figures(self) -> dict[str, float]:
        """Nothing: real time is told by the run's log."""
        return {}
