"""A simulated population: clients are numbers, a round costs what its cohort costs, the ledger is a real run's."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ..algorithms.federated.fleet import Gathered
from ..algorithms.federated.messages import Encodings, arrays, as_it_arrives, model_message
from ..algorithms.federated.methods import Method
from ..algorithms.federated.tree import Part
from ..core.transfer import Direction, Recorder, Transfer
from ..wire.pack import pack
from .player import Player
from .sizes import Size, size_of


class SimulatedFleet:
    """Clients ``0 … population - 1``, played in this process; see :class:`~farshore.algorithms.federated.fleet.Fleet`.

    Parameters
    ----------
    player : Player
    population : int
    encodings : Encodings
        Of the state on its way down.
    recorder : callable, optional
        Gets a row for every frame that a real run would have sent; nodes are called ``client-7``.
    """

    def __init__(self, player: Player, population: int, encodings: Encodings, recorder: Recorder | None = None) -> None:
        self._player, self._population, self._encodings, self._recorder = player, population, encodings, recorder

    @property
    def population(self) -> int:
        """How many clients there are."""
        return self._population

    def round(self, number: int, cohort: Sequence[int], down: Part, method: Method) -> Gathered:
        """Play the cohort."""
        message = model_message(number, down, self._encodings)
        block = self._player.play(number, 0, cohort, arrays(as_it_arrives(message)))
        if self._recorder is not None:
            size = size_of(pack(message))
            for client in cohort:
                self._record(client, "down", "model", number, size)
            for client, size in zip(cohort, block.sizes, strict=True):
                self._record(client, "up", "update", number, size)
        return Gathered(block.total, block.replies, block.missing)

    def keep(self, number: int) -> None:
        """Nothing: memories die with this process, and the state that was kept with them."""

    def _record(self, client: int, direction: Direction, kind: str, number: int, size: Size) -> None:
        assert self._recorder is not None
        where = f"client-{client}", direction, kind, size.encoding, number, 0, 0
        self._recorder(Transfer(*where, size.dense, size.payload, size.frame, 0, time.time()))
