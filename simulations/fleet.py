"""A simulated population: clients are numbers, a round costs what its cohort costs, the ledger is a real run's."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from ..algorithms.federated.fleet import Gathered
from ..algorithms.federated.fleet import cohort as draw_cohort
from ..algorithms.federated.messages import Encodings, arrays, as_it_arrives, model_message
from ..algorithms.federated.methods import Method
from ..algorithms.federated.tree import Part
from ..core.errors import ConfigError
from ..core.seeds import Seed
from ..core.transfer import Direction, Recorder, Transfer
from ..wire.pack import pack
from .clock import Plan
from .sizes import Size, size_of
from .stream import VirtualStream
from .timing import Timing, Troupe


class SimulatedFleet:
    """Clients ``0 … population - 1``; see :class:`~farshore.algorithms.federated.fleet.Fleet`.

    Parameters
    ----------
    troupe : Troupe
        Plays them: a player in this process, or workers.
    population : int
    encodings : Encodings
        Of the state on its way down.
    recorder : callable, optional
        Gets a row for every frame that a real run would have sent; nodes are called ``client-7``.
    timing : Timing, optional
        Tells who answers in time; without it, everybody does.
    """

    def __init__(
        self,
        troupe: Troupe,
        population: int,
        encodings: Encodings,
        recorder: Recorder | None = None,
        timing: Timing | None = None,
    ) -> None:
        self._troupe, self._population, self._encodings, self._recorder = troupe, population, encodings, recorder
        self._timing, self._wanted = timing, population

    @property
    def population(self) -> int:
        """How many clients there are."""
        return self._population

    def draw(self, seed: Seed, number: int, size: int) -> list[int]:
        """Those that are on, more than ``size`` of them where the clock over-samples."""
        self._wanted = size
        if self._timing is None:
            return draw_cohort(seed, number, self._population, size)
        clock = self._timing.clock
        return clock.draw(seed.child("cohort", number), clock.oversampled(size))

    def resume(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Set the clock to the end of the last round."""
        if self._timing is not None and history:
            self._timing.clock.now = history[-1]["simulated_seconds"]

    def round(self, number: int, cohort: Sequence[int], down: Part, method: Method) -> Gathered:
        """Play the cohort."""
        message = model_message(number, down, self._encodings)
        seen = arrays(as_it_arrives(message))
        size = size_of(pack(message))
        for client in cohort:
            self._record(client, "down", "model", number, size)
        if self._timing is None:
            return self._play(number, cohort, seen, method)
        plan = self._plan(self._timing, number, cohort, seen, size, method)
        gathered = self._play(number, plan.used, seen, method) if plan.used else Gathered()
        self._late(self._timing, number, plan.late, seen, method)
        gathered.missing |= dict.fromkeys(plan.late, "its reply came too late")
        gathered.missing |= dict.fromkeys(plan.lost, "it was lost")
        gathered.figures = {
            "simulated_seconds": self._timing.clock.now,
            "round_seconds": plan.seconds,
            "joule": plan.joule,
            "clients_ok": float(len(gathered.replies)),
            "clients_late": float(len(plan.late)),
            "clients_lost": float(len(plan.lost)),
        }
        return gathered

    def stream(self, method: Method) -> VirtualStream:
        """The same clients, one by one.

        Raises
        ------
        ConfigError
            Nothing tells the time.
        """
        if self._timing is None:
            raise ConfigError("who answers first depends on the devices, and the simulation has none", cure="name them")
        return VirtualStream(self._troupe, self._population, self._encodings, self._timing, method, self._record)

    def keep(self, number: int) -> None:
        """Nothing: memories die with this process, and the state that was kept with them."""

    def _plan(self, timing: Timing, number: int, cohort: Sequence[int], seen: Part, size: Size, method: Method) -> Plan:
        now = timing.clock.now
        return timing.clock.round([timing.trip(number, c, seen, size, method, now) for c in cohort], self._wanted)

    def _play(self, number: int, cohort: Sequence[int], seen: Part, method: Method) -> Gathered:
        block = self._troupe.play(number, cohort, seen, method)
        for client, size in zip(cohort, block.sizes, strict=True):
            self._record(client, "up", "update", number, size)
        return Gathered(block.total, block.replies, block.missing)

    def _late(self, timing: Timing, number: int, late: Sequence[int], seen: Part, method: Method) -> None:
        """Late replies arrive and count as bytes; who remembers nothing need not train for that."""
        if late and timing.remembers:
            self._play(number, late, seen, method)
            return
        for client in late:
            self._record(client, "up", "update", number, timing.update(number, client, seen, method))

    def _record(self, client: int, direction: Direction, kind: str, number: int, size: Size) -> None:
        if self._recorder is None:
            return
        where = f"client-{client}", direction, kind, size.encoding, number, 0, 0
        self._recorder(Transfer(*where, size.dense, size.payload, size.frame, 0, time.time()))
