"""Records in a simulated run's ledger the frames that the nodes and server of a distributed run would exchange."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ...core.handshake import begin, hello
from ...core.message import Message
from ...core.transfer import Direction, Recorder, Transfer
from ...engines.federated.assets import Assets
from ...engines.federated.exchange import Exchange, asset_exchange, checkpoint_exchange, end_exchange
from ...wire.pack import pack
from ..sizes import Size, Sizer, size_of

#: Largest population whose frames to and from all nodes (hello, begin, keep, done) are recorded. In larger ones they
#: would make each round cost as much as the population instead of its cohort.
MAX_LISTED_CLIENTS = 1000


@dataclass(frozen=True, slots=True)
class ResumeState:
    """State of a resumed run that determines which frames its clients exchange.

    Attributes
    ----------
    epoch : int
        Restart epoch: how often the run was restarted.
    steps : sequence of int
        Steps of the checkpoints that exist.
    participants : frozenset of int
        Clients that took part in an earlier round, and so hold the run's assets already.
    """

    epoch: int = 0
    steps: Sequence[int] = ()
    participants: frozenset[int] = frozenset()


NEW_RUN = ResumeState()


class SimulatedTraffic:
    """Records the frames of clients, which are named ``client-0``, ``client-1``, ….

    Parameters
    ----------
    recorder : callable
        Called with a :class:`~farshore.core.transfer.Transfer` for every frame.
    population : int
        Number of clients. Up to :data:`MAX_LISTED_CLIENTS`, frames to and from all nodes are recorded for each client.
    assets : Assets, optional
        Data that every client needs before its first round.
    resume_state : ResumeState
    """

    def __init__(
        self, recorder: Recorder, population: int, assets: Assets | None = None, resume_state: ResumeState = NEW_RUN
    ) -> None:
        self._recorder, self._assets, self._resume_state = recorder, assets, resume_state
        self._listed = range(population if population <= MAX_LISTED_CLIENTS else 0)
        self._offered: set[int] = set()  # clients that were offered the assets
        self._sizer = Sizer()
        handshake: Exchange = iter(
            [("up", hello(resume_state.steps)), ("down", begin(max(resume_state.steps, default=None)))]
        )
        self._record_exchange(self._listed, handshake)

    def record_state(self, message: Message, cohort: Sequence[int]) -> None:
        """Record the state sent to each client of a cohort, preceded by the assets for clients in their first round."""
        round_index, size = message.round, self._sizer.size(message)
        self._record_assets(round_index, [client for client in cohort if client not in self._offered])
        for client in cohort:
            self.record(client, "down", message.kind, round_index, size)

    def record_updates(self, round_index: int, clients: Sequence[int], sizes: Sequence[Size]) -> None:
        """Record the clients' updates of round ``round_index``."""
        for client, size in zip(clients, sizes, strict=True):
            self.record(client, "up", "update", round_index, size)

    def record_checkpoint(self, round_index: int) -> None:
        """Record the requests to save client states at a checkpoint, and their confirmations."""
        self._record_exchange(self._listed, checkpoint_exchange(round_index))

    def record_done(self) -> None:
        """Record the messages that end the run."""
        self._record_exchange(self._listed, end_exchange())

    def record(self, client: int, direction: Direction, kind: str, round_index: int, size: Size) -> None:
        """Record one frame."""
        where = f"client-{client}", direction, kind, size.encoding, round_index, 0, 0
        self._recorder(Transfer(*where, size.dense, size.payload, size.frame, self._resume_state.epoch, time.time()))

    def _record_assets(self, round_index: int, new: Sequence[int]) -> None:
        self._offered.update(new)
        if self._assets is None or not new:
            return
        ships, holders = self._assets.ships, self._resume_state.participants
        for lacking in (False, True):
            if clients := [client for client in new if (ships and client not in holders) == lacking]:
                self._record_exchange(clients, asset_exchange(self._assets, round_index, lacking=lacking))

    def _record_exchange(self, clients: Iterable[int], messages: Exchange) -> None:
        """Record messages that each of ``clients`` exchanges with the server."""
        for direction, message in messages:
            size = size_of(pack(message))
            for client in clients:
                self.record(client, direction, message.kind, message.round, size)
