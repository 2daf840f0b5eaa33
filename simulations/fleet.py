"""A simulated population: clients are numbers, a round costs what its cohort costs, the ledger is a real run's."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from ..algorithms.federated.codec import Codec
from ..algorithms.federated.fleet import Gathered
from ..algorithms.federated.methods import Method
from ..algorithms.federated.tree import Part
from ..core.transfer import Direction, Recorder, Transfer
from ..wire.pack import pack
from .player import Block
from .sizes import Size, size_of


class Troupe(Protocol):
    """Whoever plays a cohort."""

    def play(self, number: int, cohort: Sequence[int], down: Part, method: Method) -> Block:
        """Round ``number`` for all of a cohort, from the state ``down``."""


class SimulatedFleet:
    """Clients ``0 … population - 1``; see :class:`~farshore.algorithms.federated.fleet.Fleet`.

    Parameters
    ----------
    troupe : Troupe
        Plays them: a player in this process, or workers.
    population : int
    codec : Codec
    recorder : callable, optional
        Gets a row for every frame that a real run would have sent; nodes are called ``client-7``.
    attempt : int
        How often the run was restarted.
    """

    def __init__(
        self,
        troupe: Troupe,
        population: int,
        codec: Codec,
        recorder: Recorder | None = None,
        *,
        attempt: int = 0,
    ) -> None:
        self._troupe, self._population, self._codec, self._recorder = troupe, population, codec, recorder
        self._attempt = attempt

    @property
    def population(self) -> int:
        """How many clients there are."""
        return self._population

    def round(self, number: int, cohort: Sequence[int], down: Part, method: Method) -> Gathered:
        """Play the cohort."""
        message = self._codec.down(number, down)
        seen = self._codec.seen(message, down)
        block = self._troupe.play(number, cohort, seen, method)
        if self._recorder is not None:
            size = size_of(pack(message))
            for client in cohort:
                self._record(client, "down", "model", number, size)
            for client, size in zip(cohort, block.sizes, strict=True):
                self._record(client, "up", "update", number, size)
        return Gathered(block.total, block.replies, block.missing, seen)

    def keep(self, number: int) -> None:
        """Nothing: memories die with this process, and the state that was kept with them."""

    def _record(self, client: int, direction: Direction, kind: str, number: int, size: Size) -> None:
        assert self._recorder is not None
        where = f"client-{client}", direction, kind, size.encoding, number, 0, 0
        self._recorder(Transfer(*where, size.dense, size.payload, size.frame, self._attempt, time.time()))
