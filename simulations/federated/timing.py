"""How long the clients of a simulated run take: a clock, and the steps and frames that it is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from ...engines.federated.codec import UpdateCodec
from ...engines.federated.methods import FederatedMethod, Update
from ...engines.federated.tree import Part
from ..clock import RoundSchedule, Trip, VirtualClock
from ..sizes import Size, Sizer
from .client_runner import Block


class ClientExecutor(Protocol):
    """Whoever plays a cohort."""

    def play(self, round_index: int, cohort: Sequence[int], down: Part, method: FederatedMethod) -> Block:
        """Round ``round_index`` for all of a cohort, from the state ``down``."""

    def keep(self, round_index: int) -> None:
        """The checkpoint of round ``round_index`` was saved."""


class Timing:
    """A clock, and what it must know of a run to time its clients before they train.

    An update is timed by the frame that one of its shapes has; an encoding whose size depends on the values is timed
    as if all of them were those of the state.

    Parameters
    ----------
    clock : VirtualClock
    count : callable
        (client, round) → samples and steps of its work, and passes over batches beside the steps; these take as long.
    codec : Codec
    remembers : bool
        Whether clients keep something from round to round: then those whose reply comes too late train all the same.
    reports : sequence of str
        Names of the figures that clients tell with their updates.
    """

    def __init__(
        self,
        clock: VirtualClock,
        count: Callable[[int, int], tuple[int, int, int]],
        codec: UpdateCodec,
        remembers: bool,
        reports: Sequence[str] = (),
    ) -> None:
        self.clock, self.remembers = clock, remembers
        self._figures = dict.fromkeys(reports, 1.0)
        self._count, self._codec, self._sizer = count, codec, Sizer()

    def trip(
        self, round_index: int, client: int, down: Part, size: Size, method: FederatedMethod, begin: float
    ) -> Trip:
        """A client's part in a round."""
        up = self.update(round_index, client, down, method)
        _, steps, passes = self._count(client, round_index)
        return self.clock.trip(round_index, client, steps + passes, size.frame, up.frame, begin)

    def update(self, round_index: int, client: int, down: Part, method: FederatedMethod) -> Size:
        """The sizes of a client's update."""
        samples, steps, _ = self._count(client, round_index)
        update = Update(method.reply(down), samples, steps, 1.0, self._figures)
        return self._sizer.size(self._codec.encode_update(round_index, update, down, {}))

    def told(self, plan: RoundSchedule, replies: int) -> dict[str, float]:
        """What there is to tell of a round: times in seconds, energy in joule, counts of clients."""
        return {
            "simulated_seconds": self.clock.now,
            "round_seconds": plan.seconds,
            "joule": plan.joule,
            "clients_ok": float(replies),
            "clients_late": float(len(plan.late)),
            "clients_lost": float(len(plan.lost)),
        }
