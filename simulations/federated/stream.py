"""Simulated clients for asynchronous methods: single replies, in the order of virtual time."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from ...core.message import Message
from ...engines.federated.client_pool import AsyncResult, InFlight, InFlightSnapshot
from ...engines.federated.codec import UpdateCodec
from ...engines.federated.methods import FederatedMethod
from ...engines.federated.tree import NamedArrays
from ...wire.pack import pack
from ..clock import RoundTrip
from ..sizes import Size, size_of
from .simulated_traffic import SimulatedTraffic
from .timing import ClientExecutor, Timing


@dataclass(frozen=True, slots=True)
class _Job:
    round_trip: RoundTrip
    round_index: int
    seen: NamedArrays


class VirtualStream:
    """Event queue of clients in training; implements :class:`~farshore.engines.federated.client_pool.Stream`.

    Events are ordered by virtual time, ties by client number. A client that is offline when a state is sent to it
    starts when it is next online. A client is trained when its event is reached, so clients in training at the end of
    a run cost no computation.
    """

    def __init__(
        self,
        executor: ClientExecutor,
        population: int,
        codec: UpdateCodec,
        timing: Timing,
        method: FederatedMethod,
        traffic: SimulatedTraffic | None,
    ) -> None:
        self._executor, self._population, self._codec = executor, population, codec
        self._timing, self._method, self._traffic = timing, method, traffic
        self._events: list[tuple[float, int, _Job]] = []
        self._current: tuple[Message, NamedArrays, Size] | None = None
        self._since, self._joule, self._counts = timing.clock.now, 0.0, {"ok": 0, "lost": 0}

    def send(self, client: int, round_index: int, down: NamedArrays) -> None:
        """Schedule the end of the client's training from ``down``, which is version ``round_index`` of the state."""
        if self._current is None or self._current[0].round != round_index:
            message = self._codec.encode_state(round_index, down)
            self._current = message, self._codec.received_state(message, down), size_of(pack(message))
        message, seen, size = self._current
        if self._traffic:
            self._traffic.record_state(message, [client])
        begin = self._timing.clock.next_online(client)
        round_trip = self._timing.round_trip(round_index, client, seen, size, self._method, begin)
        heapq.heappush(self._events, (round_trip.end, client, _Job(round_trip, round_index, seen)))

    def ready(self, client: int) -> bool:
        """Whether the client is online."""
        return self._timing.clock.is_online(client)

    def next(self) -> AsyncResult:
        """Advance the clock to the next event, train its client and return the outcome."""
        end, client, job = heapq.heappop(self._events)
        self._timing.clock.now = end
        self._joule += job.round_trip.joule
        if job.round_trip.lost:
            self._counts["lost"] += 1
            return AsyncResult(client, job.round_index, None, job.seen, missing="the client was lost")
        result = self._executor.train(job.round_index, [client], job.seen, self._method)
        if self._traffic:
            self._traffic.record_updates(job.round_index, [client], result.sizes)
        if result.total is None:
            return AsyncResult(client, job.round_index, None, job.seen, missing=result.missing[client])
        self._counts["ok"] += 1
        proposal = self._method.finish(job.seen, result.total, self._population)
        return AsyncResult(client, job.round_index, proposal, job.seen, result.replies[0])

    def snapshot(self) -> InFlightSnapshot:
        """Return the clients in training, ordered by client, and the states they train from."""
        jobs = sorted((job for _, _, job in self._events), key=lambda job: job.round_trip.client)
        trips = [(job.round_trip, job.round_index) for job in jobs]
        flights = [InFlight(trip.client, index, trip.end, trip.lost, trip.joule) for trip, index in trips]
        return InFlightSnapshot(flights, {job.round_index: job.seen for job in jobs})

    def restore(self, snapshot: InFlightSnapshot) -> None:
        """Restore the clients in training from a checkpoint; their downloads are in the ledger already."""
        for flight in snapshot.flights:
            round_trip = RoundTrip(flight.client, flight.end, flight.lost, flight.joule)
            job = _Job(round_trip, flight.round_index, snapshot.states[flight.round_index])
            heapq.heappush(self._events, (flight.end, flight.client, job))

    def metrics(self) -> dict[str, float]:
        """Return times, energy and numbers of clients since the last call."""
        now = self._timing.clock.now
        metrics = {
            "simulated_seconds": now,
            "round_seconds": now - self._since,
            "joule": self._joule,
            "clients_ok": float(self._counts["ok"]),
            "clients_late": 0.0,
            "clients_lost": float(self._counts["lost"]),
        }
        self._since, self._joule, self._counts = now, 0.0, {"ok": 0, "lost": 0}
        return metrics
