"""A pool of simulated clients, identified by number; the cost of a round depends on its cohort, not the population."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...core.errors import ConfigError
from ...core.seeds import Seed
from ...core.transfer import Recorder
from ...engines.federated.assets import Assets
from ...engines.federated.client_pool import RoundResult
from ...engines.federated.client_pool import cohort as draw_cohort
from ...engines.federated.codec import UpdateCodec
from ...engines.federated.left_out import clients_text, group_by_reason
from ...engines.federated.methods import FederatedMethod
from ...engines.federated.tree import NamedArrays
from ..sizes import Sizer
from .simulated_traffic import NEW_RUN, ResumeState, SimulatedTraffic
from .stream import VirtualStream
from .timing import ClientExecutor, Timing


class SimulatedPool:
    """Clients ``0 … population - 1``; implements :class:`~farshore.engines.federated.client_pool.ClientPool`.

    Parameters
    ----------
    executor : ClientExecutor
        Trains the clients: a runner in this process, or workers.
    population : int
        Number of clients.
    codec : UpdateCodec
    recorder : callable, optional
        Called with a row for every frame that a distributed run would send; see :class:`SimulatedTraffic`.
    assets : Assets, optional
        Data that every client needs before its first round; the executor holds them already.
    resume_state : ResumeState
        State of a resumed run.
    timing : Timing, optional
        Determines which clients reply in time; without it, all do.
    log : callable, optional
        Called with a line if clients cannot train or their updates cannot be used.
    """

    def __init__(
        self,
        executor: ClientExecutor,
        population: int,
        codec: UpdateCodec,
        recorder: Recorder | None = None,
        assets: Assets | None = None,
        resume_state: ResumeState = NEW_RUN,
        timing: Timing | None = None,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._executor, self._population, self._codec, self._log = executor, population, codec, log
        self._timing, self._replies_needed, self._sizer = timing, population, Sizer()
        self._traffic = SimulatedTraffic(recorder, population, assets, resume_state) if recorder else None

    @property
    def population(self) -> int:
        """Number of clients."""
        return self._population

    def draw(self, seed: Seed, round_index: int, size: int) -> list[int]:
        """Draw a cohort among the clients that are online, larger than ``size`` if the clock over-samples."""
        self._replies_needed = size
        if self._timing is None:
            return draw_cohort(seed, round_index, self._population, size)
        clock = self._timing.clock
        return clock.draw(seed.child("cohort", round_index), clock.oversampled(size))

    def resume(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Set the clock to the end of the last round in ``history``."""
        if self._timing is not None and history:
            self._timing.clock.now = history[-1]["simulated_seconds"]

    def round(self, round_index: int, cohort: Sequence[int], down: NamedArrays, method: FederatedMethod) -> RoundResult:
        """Train the cohort; with timing, add up only the replies that arrive in time."""
        message = self._codec.encode_state(round_index, down)
        seen = self._codec.received_state(message, down)
        if self._traffic:
            self._traffic.record_state(message, cohort)
        if self._timing is None:
            return self._train(round_index, cohort, seen, method)
        timing, now, size = self._timing, self._timing.clock.now, self._sizer.size(message)
        trips = [timing.round_trip(round_index, client, seen, size, method, now) for client in cohort]
        schedule = timing.clock.finish_round(trips, self._replies_needed)
        result = self._train(round_index, schedule.used, seen, method) if schedule.used else RoundResult(received=seen)
        self._train_late(timing, round_index, schedule.late, seen, method)
        result.late = schedule.late
        result.missing |= dict.fromkeys(schedule.late, "its reply arrived too late")
        result.missing |= dict.fromkeys(schedule.lost, "the client was lost")
        result.metrics = timing.metrics(schedule, len(result.replies))
        return result

    def stream(self, method: FederatedMethod) -> VirtualStream:
        """Return the clients as a stream of single replies.

        Raises
        ------
        ConfigError
            The pool has no timing, so that replies have no order.
        """
        if self._timing is None:
            raise ConfigError(
                "the order of replies depends on the devices, and the simulation has none",
                hint="set 'devices' in the scenario",
            )
        return VirtualStream(self._executor, self._population, self._codec, self._timing, method, self._traffic)

    def save_client_states(self, round_index: int) -> None:
        """Save the client states as of round ``round_index``."""
        self._executor.checkpoint_saved(round_index)
        if self._traffic:
            self._traffic.record_checkpoint(round_index)

    def finish(self) -> None:
        """Record the end of the run."""
        if self._traffic:
            self._traffic.record_done()

    def _train(
        self, round_index: int, clients: Sequence[int], seen: NamedArrays, method: FederatedMethod
    ) -> RoundResult:
        start = time.monotonic()
        result = self._executor.train(round_index, clients, seen, method)
        seconds = {"train": time.monotonic() - start, "wait": 0.0}
        if self._traffic:
            self._traffic.record_updates(round_index, clients, result.sizes)
        for why, left_out in group_by_reason(result.missing).items():
            self._log(f"round {round_index}: {clients_text(left_out)} left out: {why}")
        return RoundResult(result.total, result.replies, result.missing, seen, seconds=seconds)

    def _train_late(
        self, timing: Timing, round_index: int, late: Sequence[int], seen: NamedArrays, method: FederatedMethod
    ) -> None:
        """Account for late replies: their bytes count, and clients that keep a state train so that it changes."""
        if late and timing.keeps_state:
            self._train(round_index, late, seen, method)
        elif self._traffic:
            sizes = [timing.update_size(round_index, client, seen, method) for client in late]
            self._traffic.record_updates(round_index, late, sizes)
