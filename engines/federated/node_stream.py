"""Real nodes one by one, where nobody waits for a whole cohort: replies are taken as they come."""

from __future__ import annotations

from dataclasses import dataclass

from ...core.errors import PeerLostError, WireError
from ...core.message import Message
from ...core.session import ServerSession
from .assets import Assets, offer, wants
from .client_pool import AsyncResult, Reply, UnderWay
from .codec import UpdateCodec
from .messages import UpdateError
from .methods import FederatedMethod
from .tree import Part
from .update_validation import contributed


@dataclass(frozen=True, slots=True)
class _Version:
    round_index: int
    message: Message
    seen: Part


class NodeStream:
    """See :class:`~farshore.engines.federated.client_pool.Stream`; who is lost is asked nothing more.

    Parameters
    ----------
    session : ServerSession
    busy : dict
        Node -> what it was asked for and has not answered; changed here.
    new : set of str
        Nodes that may lack what they must hold; changed here.
    briefing : Briefing or None
    codec : Codec
    method : Method
    largest_norm : float
        See :func:`~farshore.engines.federated.update_validation.contributed`.
    """

    def __init__(
        self,
        session: ServerSession,
        busy: dict[str, int],
        new: set[str],
        briefing: Assets | None,
        codec: UpdateCodec,
        method: FederatedMethod,
        largest_norm: float,
    ) -> None:
        self._session, self._busy, self._new, self._briefing = session, busy, new, briefing
        self._codec, self._method, self._largest_norm = codec, method, largest_norm
        self._names = list(session.channels)
        self._clients = {name: client for client, name in enumerate(self._names)}
        self._jobs: dict[str, _Version] = {}
        self._lost: dict[str, str] = {}
        self._version: _Version | None = None

    def send(self, client: int, round_index: int, down: Part) -> None:
        """Send the state, or first what the node must hold; whoever is lost is told of by :meth:`next`."""
        if (
            self._version is None or self._version.round_index != round_index
        ):  # one copy for all that begin from a version
            message = self._codec.down(round_index, down)
            self._version = _Version(round_index, message, self._codec.seen(message, down))
        name = self._names[client]
        self._jobs[name] = self._version
        self._busy[name] = round_index
        brief = self._briefing if name in self._new else None
        self._send(name, offer(brief, round_index) if brief else self._version.message)

    def ready(self, client: int) -> bool:
        """Every node is."""
        return True

    def next(self) -> AsyncResult:
        """The next reply of any node."""
        while True:
            if self._lost:
                return self._gone(*self._lost.popitem())
            try:
                name, answer = self._session.receive_any(list(self._jobs))
            except PeerLostError as error:
                return self._gone(error.name, str(error))
            except WireError as error:
                self._session.dismiss(error.name, str(error))
                return self._gone(error.name, f"it broke the wire format: {error}")
            job = self._jobs[name]
            if name in self._new:
                try:
                    self._brief(name, answer, job)
                except UpdateError as error:
                    return self._nothing(name, str(error))
            else:
                return self._arrival(name, answer)

    def figures(self) -> dict[str, float]:
        """Nothing: real time is told by the run's log."""
        return {}

    def under_way(self) -> None:
        """Nodes' programs begin anew with the server's, and what they were at is gone."""
        return

    def take_up(self, under_way: UnderWay) -> None:
        """Never asked for: see :meth:`under_way`."""
        raise RuntimeError("what real nodes had under way cannot be taken up")

    def _send(self, name: str, message: Message) -> None:
        try:
            self._session.channels[name].send(message)
        except PeerLostError as error:
            self._lost[name] = str(error)

    def _brief(self, name: str, answer: Message, job: _Version) -> None:
        """Send a node what it lacks, and then the state."""
        assert self._briefing is not None
        if wants(answer):
            self._send(name, self._briefing.goods(job.round_index))
        self._new.discard(name)
        self._send(name, job.message)

    def _arrival(self, name: str, answer: Message) -> AsyncResult:
        job, client = self._jobs[name], self._clients[name]
        try:
            update = self._codec.read(answer, job.round_index, job.seen, self._method.reply(job.seen))
            part = contributed(self._method, job.seen, update, self._largest_norm)
        except UpdateError as error:
            return self._nothing(name, str(error))
        self._settle(name)
        proposal = self._method.finish(job.seen, part, len(self._names))
        reply = Reply.of(client, update)
        return AsyncResult(client, job.round_index, proposal, job.seen, reply)

    def _gone(self, name: str, why: str) -> AsyncResult:
        self._lost.pop(name, None)
        return self._nothing(name, why, gone=True)

    def _nothing(self, name: str, why: str, *, gone: bool = False) -> AsyncResult:
        job = self._settle(name)
        return AsyncResult(self._clients[name], job.round_index, None, job.seen, missing=why, gone=gone)

    def _settle(self, name: str) -> _Version:
        self._busy.pop(name, None)
        return self._jobs.pop(name)
