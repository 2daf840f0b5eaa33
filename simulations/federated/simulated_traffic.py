"""The frames that programs exchange beside states and updates, for the ledger of a simulated run."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ...core.handshake import begin, hello
from ...core.message import Message
from ...core.transfer import Direction, Recorder, Transfer
from ...engines.federated.assets import Assets, offer_message, offer_reply
from ...wire.pack import pack
from ..sizes import Size, Sizer, size_of

#: Of larger populations the frames that all nodes exchange are left out of the ledger: a round must cost what its
#: cohort costs, and nobody has so many real nodes to compare with.
NAMED = 1000


@dataclass(frozen=True, slots=True)
class Resumed:
    """What is known of a run that goes on.

    Attributes
    ----------
    attempt : int
        How often it was restarted.
    steps : sequence of int
        Checkpoints that there are.
    took_part : frozenset of int
        Clients that hold already what they must hold before their first round.
    """

    attempt: int = 0
    steps: Sequence[int] = ()
    took_part: frozenset[int] = frozenset()


FRESH = Resumed()


class SimulatedTraffic:
    """Records what real nodes would have sent and been sent; nodes are called ``client-7``.

    Parameters
    ----------
    recorder : callable
    population : int
        Up to :data:`NAMED`, frames to all nodes (hello, begin, keep, done) are recorded for each of them.
    briefing : Briefing, optional
        What every client must hold before its first round.
    resumed : Resumed
    """

    def __init__(
        self, recorder: Recorder, population: int, briefing: Assets | None = None, resumed: Resumed = FRESH
    ) -> None:
        self._recorder, self._briefing, self._resumed = recorder, briefing, resumed
        self._all = range(population if population <= NAMED else 0)
        self._met: set[int] = set()
        self._sizer = Sizer()
        self._to_all("up", hello(resumed.steps))
        self._to_all("down", begin(max(resumed.steps, default=None)))

    def sent(self, message: Message, cohort: Sequence[int]) -> None:
        """The state to every client of a cohort; before a client's first, what it must hold."""
        round_index, state = message.round, self._sizer.size(message)
        self._brief(round_index, [client for client in cohort if client not in self._met])
        for client in cohort:
            self.record(client, "down", message.kind, round_index, state)

    def answered(self, round_index: int, clients: Sequence[int], sizes: Sequence[Size]) -> None:
        """Clients' updates of round ``round_index``."""
        for client, size in zip(clients, sizes, strict=True):
            self.record(client, "up", "update", round_index, size)

    def keep(self, round_index: int) -> None:
        """Clients are told to save what they remember, and say that they have."""
        self._to_all("down", Message("control", round=round_index, fields={"what": "keep"}))
        self._to_all("up", Message("control", round=round_index, fields={"what": "kept"}))

    def done(self) -> None:
        """Goodbye."""
        self._to_all("down", Message("control", fields={"what": "done"}))

    def record(self, client: int, direction: Direction, kind: str, round_index: int, size: Size) -> None:
        """One frame."""
        where = f"client-{client}", direction, kind, size.encoding, round_index, 0, 0
        self._recorder(Transfer(*where, size.dense, size.payload, size.frame, self._resumed.attempt, time.time()))

    def _brief(self, round_index: int, new: Sequence[int]) -> None:
        self._met.update(new)
        if self._briefing is None or not new:
            return
        want = [client for client in new if self._briefing.ships and client not in self._resumed.took_part]
        self._to(new, "down", offer_message(self._briefing, round_index))
        self._to([client for client in new if client not in want], "up", offer_reply(round_index, has=True))
        self._to(want, "up", offer_reply(round_index, has=False))
        if want:
            self._to(want, "down", self._briefing.payload(round_index))

    def _to_all(self, direction: Direction, message: Message) -> None:
        self._to(self._all, direction, message)

    def _to(self, clients: Iterable[int], direction: Direction, message: Message) -> None:
        size = size_of(pack(message))
        for client in clients:
            self.record(client, direction, message.kind, message.round, size)
