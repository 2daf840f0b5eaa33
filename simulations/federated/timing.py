"""Computes the duration of simulated clients' work from the clock, their numbers of steps and their frame sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from ...engines.federated.codec import UpdateCodec
from ...engines.federated.messages import NO_SAMPLES, declined_message
from ...engines.federated.methods import FederatedMethod, Update
from ...engines.federated.tree import NamedArrays
from ..clock import RoundSchedule, RoundTrip, VirtualClock
from ..sizes import Size, Sizer
from .client_runner import BlockResult


class ClientExecutor(Protocol):
    """Trains the clients of cohorts: in this process, in worker processes or in Ray actors."""

    def train(self, round_index: int, cohort: Sequence[int], down: NamedArrays, method: FederatedMethod) -> BlockResult:
        """Train a cohort from the state ``down`` in round ``round_index``."""

    def checkpoint_saved(self, round_index: int) -> None:
        """Note that the checkpoint of round ``round_index`` was saved, so that older undo records can go."""


class Timing:
    """Times a run's clients before they train.

    The size of an update is that of a frame with the same shapes. For encodings whose size depends on the values, the
    values of the state are used.

    Parameters
    ----------
    clock : VirtualClock
    count : callable
        (client, round) → number of samples, number of steps, and number of other passes over a batch. A pass takes as
        long as a step.
    codec : UpdateCodec
    keeps_state : bool
        Whether clients keep a state between rounds. If so, clients whose replies arrive too late train nevertheless.
    reports : sequence of str
        Names of the metrics that clients send with their updates.
    """

    def __init__(
        self,
        clock: VirtualClock,
        count: Callable[[int, int], tuple[int, int, int]],
        codec: UpdateCodec,
        keeps_state: bool,
        reports: Sequence[str] = (),
    ) -> None:
        self.clock, self.keeps_state = clock, keeps_state
        self._metrics = dict.fromkeys(reports, 1.0)
        self._count, self._codec, self._sizer = count, codec, Sizer()

    def round_trip(
        self, round_index: int, client: int, down: NamedArrays, size: Size, method: FederatedMethod, begin: float
    ) -> RoundTrip:
        """Time a client's download of ``size``, training from ``down`` and upload, starting at ``begin`` seconds."""
        up = self.update_size(round_index, client, down, method)
        _, steps, passes = self._count(client, round_index)
        return self.clock.round_trip(round_index, client, steps + passes, size.frame, up.frame, begin)

    def update_size(self, round_index: int, client: int, down: NamedArrays, method: FederatedMethod) -> Size:
        """Return the sizes of a client's update."""
        samples, steps, _ = self._count(client, round_index)
        if not samples:
            return self._sizer.size(declined_message(round_index, NO_SAMPLES))
        update = Update(method.reply(down), samples, steps, 1.0, self._metrics)
        return self._sizer.size(self._codec.encode_update(round_index, update, down, {}))

    def metrics(self, schedule: RoundSchedule, replies: int) -> dict[str, float]:
        """Return a round's metrics: times in virtual seconds, energy in joules, numbers of clients."""
        return {
            "simulated_seconds": self.clock.now,
            "round_seconds": schedule.seconds,
            "joule": schedule.joule,
            "clients_ok": float(replies),
            "clients_late": float(len(schedule.late)),
            "clients_lost": float(len(schedule.lost)),
        }
