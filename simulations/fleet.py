"""A simulated population: clients are numbers, a round costs what its cohort costs, the ledger is a real run's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..algorithms.federated.briefing import Briefing
from ..algorithms.federated.codec import Codec
from ..algorithms.federated.fleet import Gathered
from ..algorithms.federated.methods import Method
from ..algorithms.federated.tree import Part
from ..core.transfer import Recorder
from .conversation import FRESH, Conversation, Resumed
from .player import Block


class Troupe(Protocol):
    """Whoever plays a cohort."""

    def play(self, number: int, cohort: Sequence[int], down: Part, method: Method) -> Block:
        """Round ``number`` for all of a cohort, from the state ``down``."""

    def keep(self, number: int) -> None:
        """The checkpoint of round ``number`` was saved."""


class SimulatedFleet:
    """Clients ``0 … population - 1``; see :class:`~farshore.algorithms.federated.fleet.Fleet`.

    Parameters
    ----------
    troupe : Troupe
        Plays them: a player in this process, or workers.
    population : int
    codec : Codec
    recorder : callable, optional
        Gets a row for every frame that a real run would have sent; see :class:`Conversation`.
    briefing : Briefing, optional
        What every client must hold before its first round; the troupe holds it already.
    resumed : Resumed
        What is known of a run that goes on.
    """

    def __init__(
        self,
        troupe: Troupe,
        population: int,
        codec: Codec,
        recorder: Recorder | None = None,
        briefing: Briefing | None = None,
        resumed: Resumed = FRESH,
    ) -> None:
        self._troupe, self._population, self._codec = troupe, population, codec
        self._conversation = Conversation(recorder, population, briefing, resumed) if recorder else None

    @property
    def population(self) -> int:
        """How many clients there are."""
        return self._population

    def round(self, number: int, cohort: Sequence[int], down: Part, method: Method) -> Gathered:
        """Play the cohort."""
        message = self._codec.down(number, down)
        seen = self._codec.seen(message, down)
        block = self._troupe.play(number, cohort, seen, method)
        if self._conversation:
            self._conversation.round(message, cohort, block.sizes)
        return Gathered(block.total, block.replies, block.missing, seen)

    def keep(self, number: int) -> None:
        """Clients are told to save what they remember."""
        self._troupe.keep(number)
        if self._conversation:
            self._conversation.keep(number)

    def done(self) -> None:
        """Say goodbye."""
        if self._conversation:
            self._conversation.done()
