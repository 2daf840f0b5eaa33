"""The clients of a run that are real nodes: they die, come back, are late, hang and send what they should not."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from ...core.errors import PeerLostError, WireError
from ...core.message import Message
from ...core.seeds import Seed
from ...core.session import ServerSession
from .assets import Assets
from .client_pool import RoundResult, cohort
from .codec import UpdateCodec
from .methods import FederatedMethod, Update
from .node_round import NodeRound
from .node_stream import NodeStream
from .tree import Part
from .update_validation import contributed


class NodePool:
    """Nodes over the channels of a session; client ``i`` is the session's ``i``-th node.

    A node that still works on an earlier round is sent nothing more until it has answered: so a program that hangs
    holds one state at most and blocks nobody, and one that is slow does not train on what is long past.

    Parameters
    ----------
    session : ServerSession
    codec : Codec
    briefing : Briefing, optional
        What every node must hold before its first round.
    least : int
        A round waits until so many nodes are there.
    deadline : float
        Seconds that a round waits for replies; 0 = until everybody has answered or is lost.
    largest_norm : float
        See :func:`~farshore.engines.federated.update_validation.contributed`.
    """

    def __init__(
        self,
        session: ServerSession,
        codec: UpdateCodec,
        briefing: Assets | None = None,
        *,
        least: int = 1,
        deadline: float = 0.0,
        largest_norm: float = 0.0,
    ) -> None:
        self._session, self._codec, self._briefing = session, codec, briefing
        self._least, self._deadline, self._largest_norm = least, deadline, largest_norm
        self._names = list(session.channels)
        #: Nodes that may lack what they must hold.
        self._new = set(self._names if briefing else ())
        #: Node -> the round in which it was asked for what it has not answered yet.
        self._busy: dict[str, int] = {}

    @property
    def population(self) -> int:
        """How many nodes there are, lost ones included."""
        return len(self._names)

    def draw(self, seed: Seed, round_index: int, size: int) -> list[int]:
        """Any nodes."""
        return cohort(seed, round_index, self.population, size)

    def resume(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Nothing: nodes resume by themselves."""

    def stream(self, method: FederatedMethod) -> NodeStream:
        """The nodes, whose replies are taken as they come."""
        self._session.readmit(self._least)
        return NodeStream(self._session, self._busy, self._new, self._briefing, self._codec, method, self._largest_norm)

    def round(self, round_index: int, cohort: Sequence[int], down: Part, method: FederatedMethod) -> RoundResult:
        """See :class:`~farshore.engines.federated.client_pool.ClientPool`.

        A node that is lost, late or sends what does not fit is left out, and named in the run's log.
        """
        for name in self._session.readmit(self._least):
            self._busy.pop(name, None)
            if self._briefing is not None:
                self._new.add(name)
        message = self._codec.down(round_index, down)
        seen = self._codec.seen(message, down)  # what clients begin from, and updates are measured against

        def read(answer: Message) -> tuple[Update, Part]:
            update = self._codec.read(answer, round_index, seen, method.reply(seen))
            return update, contributed(method, seen, update, self._largest_norm)

        asked = {self._names[client]: (place, client) for place, client in enumerate(cohort)}
        played = NodeRound(self._session, self._busy, self._new, self._briefing, message, asked, read)
        gathered = played.play(self._patience())
        gathered.seen = seen
        return gathered

    def keep(self, round_index: int) -> None:
        """Have all nodes that are free save what they remember, and wait until they have."""
        left, owing = self._patience(), []
        for name, channel in self._session.channels.items():
            with suppress(PeerLostError, TimeoutError):
                if name not in self._busy:
                    channel.send(Message("control", round=round_index, fields={"what": "keep"}), 0.0)
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
                self._busy |= dict.fromkeys(owing, round_index)
                self._session.log(
                    f"round {round_index}: {', '.join(owing)} did not say in time that it kept its memory"
                )
                return
            owing.remove(name)

    def done(self) -> None:
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
