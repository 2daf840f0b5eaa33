"""Virtual time of a simulation: how long rounds take on the population's devices, and which replies arrive in time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat

from ..core.seeds import Seed
from .population import Groups, Population, read_groups


class Devices(BaseModel):
    """Devices of the clients, and how long the server waits for them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    population: Groups | str = Field(description="groups of profiles, a YAML file, or the name of a bundled one")
    seconds_per_step: float = Field(gt=0, description="duration of a local step at compute factor 1")
    seconds_per_message: dict[str, NonNegativeFloat] = Field(
        default_factory=dict, description="message kind -> what a node computes for one at factor 1; not federated"
    )
    server_seconds_per_message: dict[str, NonNegativeFloat] = Field(
        default_factory=dict, description="message kind -> what the server computes before it sends one; not federated"
    )
    deadline: float = Field(
        0.0, ge=0, description="virtual seconds that a round waits; 0 = until all replied or are lost"
    )
    over: float = Field(1.0, ge=1, description="over-sampling: factor on the cohort size; the first replies are used")

    def resolved(self) -> Devices:
        """Return a copy with the groups in place of a file or name."""
        groups = self.population if isinstance(self.population, Groups) else read_groups(self.population)
        return self.model_copy(update={"population": groups})

    def clock(self, count: int, seed: Seed) -> VirtualClock:
        """Return the clock of a run with ``count`` clients."""
        population = Population.from_groups(self.population, count, seed)
        return VirtualClock(population, self.seconds_per_step, seed, self.deadline, self.over)


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """A client's part in a round: download, local training and upload.

    Attributes
    ----------
    client : int
    end : float
        Virtual time in seconds at which the reply arrives, or the client crashes.
    lost : bool
        Whether the client crashes.
    joule : float
        Energy used until then.
    """

    client: int
    end: float
    lost: bool
    joule: float


@dataclass(frozen=True, slots=True)
class RoundSchedule:
    """Which replies a round uses, and how long it takes.

    Attributes
    ----------
    used, late, lost : list of int
        Clients in cohort order: those whose reply is used, those whose reply is late or surplus, those that crash.
    seconds : float
        Virtual duration of the round.
    joule : float
        Energy used by all of its clients, including late ones until their reply arrives.
    """

    used: list[int]
    late: list[int]
    lost: list[int]
    seconds: float
    joule: float


class VirtualClock:
    """Clock of a simulated run; its times are computed, never measured.

    Parameters
    ----------
    population : Population
    seconds_per_step : float
        Duration of a local step at compute factor 1.
    seed : Seed
        Seed of the run. Jitter and crashes depend on round and client only, not on the rest of the cohort.
    deadline : float
        Seconds that a round waits; 0 = until all clients have replied or are lost.
    over : float
        ``ceil(S · over)`` clients are drawn, the first ``S`` replies are used (Bonawitz 2019, section 2.2).

    Attributes
    ----------
    now : float
        Virtual time in seconds since the run's start.
    """

    def __init__(
        self, population: Population, seconds_per_step: float, seed: Seed, deadline: float = 0.0, over: float = 1.0
    ) -> None:
        self.now = 0.0
        self._devices, self._count, self._seed = population.columns, population.count, seed.child("clock")
        self._seconds_per_step, self._deadline, self._over = seconds_per_step, deadline, over

    def oversampled(self, size: int) -> int:
        """Return the number of clients to draw for ``size`` replies."""
        return min(self._count, math.ceil(round(size * self._over, 9)))

    def cohort_is_time_independent(self, size: int) -> bool:
        """Whether cohorts of ``size`` clients depend on seed and round only: no client is ever offline or surplus."""
        return self.oversampled(size) == size and float(self._devices["availability"].min()) == 1.0

    def draw(self, seed: Seed, size: int) -> list[int]:
        """Draw a cohort of clients that are online, in ascending order.

        If all clients are always online, this equals :func:`~farshore.engines.federated.client_pool.cohort`. If fewer
        than ``size`` are online, all of these are drawn; if none is, the clock advances until one is.
        """
        rng = seed.numpy()
        if float(self._devices["availability"].min()) == 1.0:
            indices = rng.choice(self._count, size=size, replace=False, shuffle=False)
            return sorted(int(client) for client in indices)
        drawn: set[int] = set()
        for client in rng.integers(self._count, size=_sampling_attempts(size)):
            if len(drawn) < size and self.is_online(int(client)):
                drawn.add(int(client))
        if len(drawn) < size:
            is_on = self._online(self.now)
            if not is_on.any():
                self.now = float(self._next_online(np.arange(self._count)).min())
                is_on = self._online(self.now)
            candidates = np.setdiff1d(np.flatnonzero(is_on), np.fromiter(drawn, np.int64, len(drawn)))
            more = min(size - len(drawn), len(candidates))
            drawn.update(int(client) for client in rng.choice(candidates, size=more, replace=False, shuffle=False))
        return sorted(drawn)

    def is_online(self, client: int) -> bool:
        """Whether a client is online now."""
        return bool(self._online(self.now, client))

    def next_online(self, client: int) -> float:
        """Return the time at which a client is next online: now if it is online."""
        return float(self._next_online(np.array([client]))[0])

    def round_trip(
        self, round_index: int, client: int, steps: int, down_bytes: int, up_bytes: int, begin: float
    ) -> RoundTrip:
        """Compute a client's part in a round, starting at ``begin`` seconds.

        A client that has started stays online until it replies or crashes.
        """
        device = {name: float(column[client]) for name, column in self._devices.items()}
        rng = self._seed.child(round_index, client).numpy()
        crash, point = rng.random(2)
        jitter = rng.normal(0.0, 1.0, 2) * device["jitter_ms"] / 1000
        down = _transfer(down_bytes, device["down_mbps"], device["loss"], device["latency_ms"] / 1000 + jitter[0])
        up = _transfer(up_bytes, device["up_mbps"], device["loss"], device["latency_ms"] / 1000 + jitter[1])
        compute = steps * self._seconds_per_step * device["compute_factor"]
        total, lost = down + compute + up, bool(crash < device["crash_rate"])
        spent = float(point) * total if lost else total
        joule = min(compute, max(0.0, spent - down)) * device["compute_watts"]
        joule += down_bytes / 1e6 * device["down_joule_per_mb"] * (min(1.0, spent / down) if down else 1.0)
        if up and spent > down + compute:
            joule += up_bytes / 1e6 * device["up_joule_per_mb"] * min(1.0, (spent - down - compute) / up)
        elif not up and not lost:
            joule += up_bytes / 1e6 * device["up_joule_per_mb"]
        return RoundTrip(client, begin + spent, lost, joule)

    def finish_round(self, trips: Sequence[RoundTrip], needed: int) -> RoundSchedule:
        """Select the replies that the round uses and advance the clock to the end of the round.

        These are the first ``needed`` replies before the deadline, ties by client number. If there are fewer, the round
        ends when the last client has replied or is lost, or at the deadline.
        """
        limit = self.now + self._deadline if self._deadline else math.inf
        arrivals = sorted((trip.end, trip.client) for trip in trips if not trip.lost and trip.end <= limit)[:needed]
        if len(arrivals) == needed:
            end = arrivals[-1][0]
        else:
            end = min(limit, max((trip.end for trip in trips), default=self.now))
        used = {client for _, client in arrivals}
        schedule = RoundSchedule(
            [trip.client for trip in trips if trip.client in used],
            [trip.client for trip in trips if trip.client not in used and not trip.lost],
            [trip.client for trip in trips if trip.lost],
            end - self.now,
            sum(trip.joule for trip in trips),
        )
        self.now = end
        return schedule

    def _phase(self, at: float, clients: int | slice | NDArray[np.int64]) -> NDArray[np.float64]:
        return np.asarray((at / self._devices["period_s"][clients] + self._devices["phase"][clients]) % 1.0)

    def _online(self, at: float, clients: int | slice = slice(None)) -> NDArray[np.bool_]:
        return np.asarray(self._phase(at, clients) < self._devices["availability"][clients])

    def _next_online(self, clients: NDArray[np.int64]) -> NDArray[np.float64]:
        phase = self._phase(self.now, clients)
        wait = (1.0 - phase) * self._devices["period_s"][clients]
        # Slightly after the start of the period, so that rounding cannot yield a time just before it.
        return np.where(phase < self._devices["availability"][clients], self.now, self.now + wait * (1 + 1e-9) + 1e-6)


def _transfer(size: int, mbps: float, loss: float, latency: float) -> float:
    """Return the seconds that a message of ``size`` bytes takes; 0 Mbit/s = unlimited."""
    return max(0.0, latency) + (size * 8e-6 / (mbps * (1.0 - loss)) if mbps else 0.0)


def _sampling_attempts(size: int) -> int:
    """Number of random draws before all clients are checked; enough if one client in eight is online."""
    return 64 + 16 * size
