"""Real nodes of an asynchronous run: each trains on its own, and replies are processed as they arrive."""

from __future__ import annotations

from dataclasses import dataclass

from ...core.errors import WireError
from ...core.message import Message
from ...core.session import ServerSession
from ..assets.offer import AssetOffer
from ..requests import Failure, Requests
from .client_pool import AsyncResult, InFlightSnapshot, Reply
from .codec import UpdateCodec
from .messages import UpdateError
from .methods import FederatedMethod
from .node_round import bound_updates
from .tree import NamedArrays
from .update_validation import validated_contribution


@dataclass(frozen=True, slots=True)
class _Version:
    round_index: int
    message: Message
    received: NamedArrays


class NodeStream:
    """See :class:`~farshore.engines.federated.client_pool.Stream`; lost nodes are not used again.

    Parameters
    ----------
    session : ServerSession
    requests : Requests
        Outstanding requests, by version.
    new : set of str
        Nodes that may lack the assets; updated here.
    offer : AssetOffer or None
        What new nodes need before their first training.
    codec : UpdateCodec
    method : FederatedMethod
    largest_norm : float
        See :func:`~farshore.engines.federated.update_validation.validated_contribution`.
    """

    def __init__(
        self,
        session: ServerSession,
        requests: Requests,
        new: set[str],
        offer: AssetOffer | None,
        codec: UpdateCodec,
        method: FederatedMethod,
        largest_norm: float,
    ) -> None:
        self._session, self._requests, self._new, self._offer = session, requests, new, offer
        self._codec, self._method, self._largest_norm = codec, method, largest_norm
        self._names = list(session.channels)
        self._clients = {name: client for client, name in enumerate(self._names)}
        self._jobs: dict[str, _Version] = {}
        self._lost: dict[str, str] = {}
        self._version: _Version | None = None

    def send(self, client: int, round_index: int, down: NamedArrays) -> None:
        """Send the state, or first the offer of the assets; :meth:`next` reports a node that is lost meanwhile."""
        # All clients that start from a version share one encoded message.
        if self._version is None or self._version.round_index != round_index:
            bound_updates(self._session, self._method, down)
            message = self._codec.encode_state(round_index, down)
            self._version = _Version(round_index, message, self._codec.received_state(message, down))
        name = self._names[client]
        self._jobs[name] = self._version
        offer = self._offer if name in self._new else None
        self._ask(name, offer.message(round_index) if offer else self._version.message)

    def ready(self, client: int) -> bool:
        """Return True: a real node starts at once."""
        return True

    def next(self) -> AsyncResult:
        """Wait for the next reply of any node."""
        while True:
            if self._lost:
                return self._gone(*self._lost.popitem())
            outcome = self._requests.next(self._jobs)
            assert outcome is not None, "there is no deadline"
            if isinstance(outcome, Failure):
                return self._gone(outcome.node, outcome.reason)
            name, answer = outcome.node, outcome.message
            if name not in self._new:
                return self._received(name, answer)
            try:
                self._provide_assets(name, answer, self._jobs[name])
            except WireError as error:
                return self._failed(name, str(error))

    def metrics(self) -> dict[str, float]:
        """Return nothing: the run's log has the times."""
        return {}

    def snapshot(self) -> None:
        """Return None: node programs restart with the server's, and their work in progress is lost."""
        return

    def restore(self, snapshot: InFlightSnapshot) -> None:
        """Raise RuntimeError: :meth:`snapshot` never returns one."""
        raise RuntimeError("work in progress on real nodes cannot be restored")

    def _ask(self, name: str, message: Message) -> None:
        if (failure := self._requests.ask(name, message)) is not None:
            self._lost[name] = failure.reason

    def _provide_assets(self, name: str, answer: Message, job: _Version) -> None:
        """Send a node the part of the assets that it asks for, or the state if it holds all of them."""
        assert self._offer is not None
        chunks = self._offer.reply(answer, name)
        if chunks is None:
            self._new.discard(name)
        for message in (job.message,) if chunks is None else chunks:
            self._ask(name, message)

    def _received(self, name: str, answer: Message) -> AsyncResult:
        job, client = self._jobs[name], self._clients[name]
        try:
            update = self._codec.decode_update(answer, job.round_index, job.received, self._method.reply(job.received))
            part = validated_contribution(self._method, job.received, update, self._largest_norm)
        except UpdateError as error:
            return self._failed(name, str(error))
        self._close_job(name)
        proposal = self._method.finish(job.received, part, len(self._names))
        reply = Reply.from_update(client, update)
        return AsyncResult(client, job.round_index, proposal, job.received, reply)

    def _gone(self, name: str, why: str) -> AsyncResult:
        self._lost.pop(name, None)
        return self._failed(name, why, gone=True)

    def _failed(self, name: str, why: str, *, gone: bool = False) -> AsyncResult:
        job = self._close_job(name)
        return AsyncResult(self._clients[name], job.round_index, None, job.received, missing=why, gone=gone)

    def _close_job(self, name: str) -> _Version:
        self._requests.forget(name)
        return self._jobs.pop(name)
