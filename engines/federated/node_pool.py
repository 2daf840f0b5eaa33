"""Runs rounds on real nodes, which may be lost, rejoin, reply late, hang or send invalid updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from ...core.errors import PeerLostError
from ...core.message import Message
from ...core.seeds import Seed
from ...core.session import ServerSession
from ..assets.offer import AssetOffer
from ..requests import Requests, deadline
from .assets import Assets
from .client_pool import RoundResult, cohort
from .codec import UpdateCodec
from .messages import Done, Keep
from .methods import FederatedMethod, Update
from .node_round import NodeRound, bound_updates
from .node_stream import NodeStream
from .tree import NamedArrays
from .update_validation import validated_contribution


class NodePool:
    """Nodes over the channels of a session; client ``i`` is the session's ``i``-th node.

    A node that still works on an earlier round is sent nothing until it has replied. A hanging program thus holds at
    most one state and blocks no other node, and a slow one does not train on outdated states.

    Parameters
    ----------
    session : ServerSession
    codec : UpdateCodec
    assets : Assets, optional
        What every node needs before its first round.
    least : int
        Minimum number of connected nodes for a round to start.
    deadline : float
        Seconds that a round waits for replies; 0 = until every node has replied or is lost.
    largest_norm : float
        See :func:`~farshore.engines.federated.update_validation.validated_contribution`.
    """

    def __init__(
        self,
        session: ServerSession,
        codec: UpdateCodec,
        assets: Assets | None = None,
        *,
        least: int = 1,
        deadline: float = 0.0,
        largest_norm: float = 0.0,
    ) -> None:
        self._session, self._codec = session, codec
        self._offer = AssetOffer(assets.sources()) if assets else None
        self._least, self._deadline, self._largest_norm = least, deadline, largest_norm
        self._names = list(session.channels)
        #: Nodes that may lack the assets.
        self._new = set(self._names if assets else ())
        self._requests = Requests(session)

    @property
    def population(self) -> int:
        """Number of nodes, lost ones included."""
        return len(self._names)

    def draw(self, seed: Seed, round_index: int, size: int) -> list[int]:
        """Draw from all nodes."""
        return cohort(seed, round_index, self.population, size)

    def resume(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Do nothing: nodes restore their own checkpoints."""

    def stream(self, method: FederatedMethod) -> NodeStream:
        """Return the nodes for asynchronous training."""
        self._session.readmit(self._least)
        return NodeStream(
            self._session, self._requests, self._new, self._offer, self._codec, method, self._largest_norm
        )

    def round(self, round_index: int, cohort: Sequence[int], down: NamedArrays, method: FederatedMethod) -> RoundResult:
        """Train the cohort from ``down``; see :class:`~farshore.engines.federated.client_pool.ClientPool`.

        A node that is lost, late or sends an invalid update is left out and named in the run's log.
        """
        for name in self._session.readmit(self._least):
            self._requests.forget(name)
            if self._offer is not None:
                self._new.add(name)
        bound_updates(self._session, method, down)
        message = self._codec.encode_state(round_index, down)
        received = self._codec.received_state(message, down)  # clients start from it; updates are relative to it

        def read(answer: Message) -> tuple[Update, NamedArrays]:
            update = self._codec.decode_update(answer, round_index, received, method.reply(received))
            return update, validated_contribution(method, received, update, self._largest_norm)

        positions = {self._names[client]: (position, client) for position, client in enumerate(cohort)}
        node_round = NodeRound(self._session, self._requests, self._new, self._offer, message, positions, read)
        result = node_round.run(deadline(self._deadline))
        result.received = received
        return result

    def save_client_states(self, round_index: int) -> None:
        """Have all idle nodes save their client state, and wait for their confirmations."""
        remaining, unconfirmed = deadline(self._deadline), []
        for name in self._session.channels:
            if name in self._requests.pending:
                continue
            with suppress(TimeoutError):
                if self._requests.ask(name, Keep().message(round=round_index), 0.0) is None:
                    unconfirmed.append(name)
        while unconfirmed:
            outcome = self._requests.next(unconfirmed, remaining())
            if outcome is None:
                names = ", ".join(unconfirmed)
                self._session.log(f"round {round_index}: {names} did not confirm saving the client state in time")
                return
            unconfirmed.remove(outcome.node)

    def finish(self) -> None:
        """End the run on all nodes without waiting for busy ones."""
        for name, channel in self._session.channels.items():
            with suppress(PeerLostError):
                try:
                    if name not in self._requests.pending:
                        channel.send(Done().message(), 0.0)
                        continue
                except TimeoutError:
                    pass
                self._session.dismiss(name, "the run has finished")
