"""Simulated clients one by one: replies arrive in the order of virtual time."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from ...core.message import Message
from ...engines.federated.client_pool import AsyncResult, InFlight, InFlightSnapshot
from ...engines.federated.codec import UpdateCodec
from ...engines.federated.methods import FederatedMethod
from ...engines.federated.tree import Part
from ...wire.pack import pack
from ..clock import Trip
from ..sizes import Size, size_of
from .simulated_traffic import SimulatedTraffic
from .timing import ClientExecutor, Timing


@dataclass(frozen=True, slots=True)
class _Job:
    trip: Trip
    round_index: int
    seen: Part


class VirtualStream:
    """See :class:`~farshore.engines.federated.client_pool.Stream`; events are ordered by time, ties by client number.

    A client that is off when it is sent something begins when it is next on. It trains when its reply is taken, so
    what is still on its way at the end of a run costs nothing.
    """

    def __init__(
        self,
        troupe: ClientExecutor,
        population: int,
        codec: UpdateCodec,
        timing: Timing,
        method: FederatedMethod,
        conversation: SimulatedTraffic | None,
    ) -> None:
        self._troupe, self._population, self._codec = troupe, population, codec
        self._timing, self._method, self._conversation = timing, method, conversation
        self._events: list[tuple[float, int, _Job]] = []
        self._version: tuple[Message, Part, Size] | None = None
        self._since, self._joule, self._counts = timing.clock.now, 0.0, {"ok": 0, "lost": 0}

    def send(self, client: int, round_index: int, down: Part) -> None:
        """Put the end of the client's training among the events."""
        if self._version is None or self._version[0].round != round_index:
            message = self._codec.encode_state(round_index, down)
            self._version = message, self._codec.received_state(message, down), size_of(pack(message))
        message, seen, size = self._version
        if self._conversation:
            self._conversation.sent(message, [client])
        begin = self._timing.clock.next_on(client)
        trip = self._timing.trip(round_index, client, seen, size, self._method, begin)
        heapq.heappush(self._events, (trip.end, client, _Job(trip, round_index, seen)))

    def ready(self, client: int) -> bool:
        """Whether it is on."""
        return self._timing.clock.on(client)

    def next(self) -> AsyncResult:
        """Let time pass until the next event."""
        end, client, job = heapq.heappop(self._events)
        self._timing.clock.now = end
        self._joule += job.trip.joule
        if job.trip.lost:
            self._counts["lost"] += 1
            return AsyncResult(client, job.round_index, None, job.seen, missing="it was lost")
        block = self._troupe.play(job.round_index, [client], job.seen, self._method)
        if self._conversation:
            self._conversation.answered(job.round_index, [client], block.sizes)
        if block.total is None:
            return AsyncResult(client, job.round_index, None, job.seen, missing=block.missing[client])
        self._counts["ok"] += 1
        proposal = self._method.finish(job.seen, block.total, self._population)
        return AsyncResult(client, job.round_index, proposal, job.seen, block.replies[0])

    def snapshot(self) -> InFlightSnapshot:
        """Every job, by client."""
        jobs = sorted((job for _, _, job in self._events), key=lambda job: job.trip.client)
        trips = [InFlight(j.trip.client, j.round_index, j.trip.end, j.trip.lost, j.trip.joule) for j in jobs]
        return InFlightSnapshot(trips, {job.round_index: job.seen for job in jobs})

    def restore(self, snapshot: InFlightSnapshot) -> None:
        """Their frames were sent before the checkpoint, and are in the ledger already."""
        for flight in snapshot.flights:
            trip = Trip(flight.client, flight.end, flight.lost, flight.joule)
            job = _Job(trip, flight.round_index, snapshot.states[flight.round_index])
            heapq.heappush(self._events, (flight.end, flight.client, job))

    def figures(self) -> dict[str, float]:
        """Times, energy and counts of the clients since the last call."""
        now = self._timing.clock.now
        told = {
            "simulated_seconds": now,
            "round_seconds": now - self._since,
            "joule": self._joule,
            "clients_ok": float(self._counts["ok"]),
            "clients_late": 0.0,
            "clients_lost": float(self._counts["lost"]),
        }
        self._since, self._joule, self._counts = now, 0.0, {"ok": 0, "lost": 0}
        return told
