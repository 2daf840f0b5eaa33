"""A simulated population: clients are numbers, a round costs what its cohort costs, the ledger is a real run's."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from ...core.errors import ConfigError
from ...core.seeds import Seed
from ...core.transfer import Recorder
from ...engines.federated.assets import Assets
from ...engines.federated.client_pool import RoundResult
from ...engines.federated.client_pool import cohort as any_cohort
from ...engines.federated.codec import UpdateCodec
from ...engines.federated.methods import FederatedMethod
from ...engines.federated.tree import Part
from ..sizes import Sizer
from .simulated_traffic import FRESH, Resumed, SimulatedTraffic
from .stream import VirtualStream
from .timing import ClientExecutor, Timing


class SimulatedPool:
    """Clients ``0 … population - 1``; see :class:`~farshore.engines.federated.client_pool.ClientPool`.

    Parameters
    ----------
    troupe : Troupe
        Plays them: a player in this process, or workers.
    population : int
    codec : Codec
    recorder : callable, optional
        Gets a row for every frame that a real run would have sent; see :class:`SimulatedTraffic`.
    briefing : Briefing, optional
        What every client must hold before its first round; the troupe holds it already.
    resumed : Resumed
        What is known of a run that goes on.
    timing : Timing, optional
        Tells who answers in time; without it, everybody does.
    """

    def __init__(
        self,
        troupe: ClientExecutor,
        population: int,
        codec: UpdateCodec,
        recorder: Recorder | None = None,
        briefing: Assets | None = None,
        resumed: Resumed = FRESH,
        timing: Timing | None = None,
    ) -> None:
        self._troupe, self._population, self._codec = troupe, population, codec
        self._timing, self._wanted, self._sizer = timing, population, Sizer()
        self._conversation = SimulatedTraffic(recorder, population, briefing, resumed) if recorder else None

    @property
    def population(self) -> int:
        """How many clients there are."""
        return self._population

    def draw(self, seed: Seed, round_index: int, size: int) -> list[int]:
        """Those that are on, more than ``size`` of them where the clock over-samples."""
        self._wanted = size
        if self._timing is None:
            return any_cohort(seed, round_index, self._population, size)
        clock = self._timing.clock
        return clock.draw(seed.child("cohort", round_index), clock.oversampled(size))

    def resume(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Set the clock to the end of the last round."""
        if self._timing is not None and history:
            self._timing.clock.now = history[-1]["simulated_seconds"]

    def round(self, round_index: int, cohort: Sequence[int], down: Part, method: FederatedMethod) -> RoundResult:
        """Play the cohort, or those of it who answer in time."""
        message = self._codec.encode_state(round_index, down)
        seen = self._codec.received_state(message, down)
        if self._conversation:
            self._conversation.sent(message, cohort)
        if self._timing is None:
            return self._play(round_index, cohort, seen, method)
        timing, now, size = self._timing, self._timing.clock.now, self._sizer.size(message)
        plan = timing.clock.round([timing.trip(round_index, c, seen, size, method, now) for c in cohort], self._wanted)
        gathered = self._play(round_index, plan.used, seen, method) if plan.used else RoundResult(received=seen)
        self._late(timing, round_index, plan.late, seen, method)
        gathered.late = plan.late
        gathered.missing |= dict.fromkeys(plan.late, "its reply came too late")
        gathered.missing |= dict.fromkeys(plan.lost, "it was lost")
        gathered.figures = timing.told(plan, len(gathered.replies))
        return gathered

    def stream(self, method: FederatedMethod) -> VirtualStream:
        """The same clients, one by one.

        Raises
        ------
        ConfigError
            Nothing tells the time.
        """
        if self._timing is None:
            raise ConfigError(
                "who answers first depends on the devices, and the simulation has none", hint="name them: --devices"
            )
        return VirtualStream(self._troupe, self._population, self._codec, self._timing, method, self._conversation)

    def save_client_states(self, round_index: int) -> None:
        """Clients are told to save what they remember."""
        self._troupe.keep(round_index)
        if self._conversation:
            self._conversation.keep(round_index)

    def finish(self) -> None:
        """Say goodbye."""
        if self._conversation:
            self._conversation.done()

    def _play(self, round_index: int, clients: Sequence[int], seen: Part, method: FederatedMethod) -> RoundResult:
        began = time.monotonic()
        block = self._troupe.play(round_index, clients, seen, method)
        seconds = {"train": time.monotonic() - began, "wait": 0.0}
        if self._conversation:
            self._conversation.answered(round_index, clients, block.sizes)
        return RoundResult(block.total, block.replies, block.missing, seen, seconds=seconds)

    def _late(self, timing: Timing, round_index: int, late: Sequence[int], seen: Part, method: FederatedMethod) -> None:
        """Late replies arrive and count as bytes; who remembers nothing need not train for that."""
        if late and timing.remembers:
            self._play(round_index, late, seen, method)
        elif self._conversation:
            sizes = [timing.update(round_index, client, seen, method) for client in late]
            self._conversation.answered(round_index, late, sizes)
