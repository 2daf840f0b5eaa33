"""Virtual time: how long a round would have taken on the devices of a population, and whom the server waits for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from ..core.seeds import Seed
from .population import Groups, Population, read_groups


class Devices(BaseModel):
    """What a simulation needs to know to tell the time."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    population: Groups | str = Field(description="groups of profiles, a YAML file, or the name of one that comes along")
    seconds_per_step: float = Field(gt=0, description="of a local step where the compute factor is 1")
    deadline: float = Field(0.0, ge=0, description="virtual seconds that a round waits; 0 = for all that live")
    over: float = Field(1.0, ge=1, description="over-sampling: so many times the cohort is drawn, the first count")

    def resolved(self) -> Devices:
        """The same with the groups in place of their name."""
        found = self.population if isinstance(self.population, Groups) else read_groups(self.population)
        return self.model_copy(update={"population": found})

    def clock(self, count: int, seed: Seed) -> VirtualClock:
        """The clock of a run with ``count`` clients."""
        population = Population.from_spec(self.population, count, seed)
        return VirtualClock(population, self.seconds_per_step, seed, self.deadline, self.over)


@dataclass(frozen=True, slots=True)
class Trip:
    """A client's part in a round.

    Attributes
    ----------
    client : int
    end : float
        When its reply is there, or when it is lost; seconds of virtual time.
    lost : bool
        It crashes on the way.
    joule : float
        What it uses up until then.
    """

    client: int
    end: float
    lost: bool
    joule: float


@dataclass(frozen=True, slots=True)
class RoundSchedule:
    """A round's outcome in time.

    Attributes
    ----------
    used, late, lost : list of int
        Clients, each in cohort order: whose reply counts, whose comes too late or is surplus, who crashes.
    seconds : float
        From the round's begin until the server goes on.
    joule : float
        What all of its clients use up, late ones to their end.
    """

    used: list[int]
    late: list[int]
    lost: list[int]
    seconds: float
    joule: float


class VirtualClock:
    """Time of a simulated run; nothing measured enters it.

    Parameters
    ----------
    population : Population
    seconds_per_step : float
        The cost table: a local step where the compute factor is 1.
    seed : Seed
        The run's; jitter and crashes are drawn by round and client, whoever else takes part.
    deadline : float
        Seconds that a round waits; 0 = until all have answered or are lost.
    over : float
        ``ceil(S · over)`` clients are drawn, the first ``S`` replies count (Bonawitz 2019, section 2.2).
    """

    def __init__(
        self, population: Population, seconds_per_step: float, seed: Seed, deadline: float = 0.0, over: float = 1.0
    ) -> None:
        self.now = 0.0
        self._rows, self._count, self._seed = population.columns, population.count, seed.child("clock")
        self._seconds_per_step, self._deadline, self._over = seconds_per_step, deadline, over

    def oversampled(self, size: int) -> int:
        """How many clients are drawn so that ``size`` replies come."""
        return min(self._count, math.ceil(round(size * self._over, 9)))

    def draws_anybody(self, size: int) -> bool:
        """Whether a round's clients are ``size`` of all, by seed and round alone: none is off, none is surplus."""
        return self.oversampled(size) == size and float(self._rows["availability"].min()) == 1.0

    def draw(self, seed: Seed, size: int) -> list[int]:
        """A cohort among those that are on, ascending; where everybody is, what :func:`cohort` draws.

        Too few of them are drawn all; if nobody is on, time passes until somebody is.
        """
        generator = seed.numpy()
        if float(self._rows["availability"].min()) == 1.0:
            drawn = generator.choice(self._count, size=size, replace=False, shuffle=False)
            return sorted(int(client) for client in drawn)
        found: set[int] = set()
        for client in generator.integers(self._count, size=_tries(size)):
            if len(found) < size and self.on(int(client)):
                found.add(int(client))
        if len(found) < size:
            everybody = self._on(self.now)
            if not everybody.any():
                self.now = float(self._next_on(np.arange(self._count)).min())
                everybody = self._on(self.now)
            rest = np.setdiff1d(np.flatnonzero(everybody), np.fromiter(found, np.int64, len(found)))
            more = min(size - len(found), len(rest))
            found.update(int(client) for client in generator.choice(rest, size=more, replace=False, shuffle=False))
        return sorted(found)

    def on(self, client: int) -> bool:
        """Whether a client can be drawn now."""
        return bool(self._on(self.now, client))

    def next_on(self, client: int) -> float:
        """When a client can next be drawn: now if it is on."""
        return float(self._next_on(np.array([client]))[0])

    def trip(self, number: int, client: int, steps: int, down_bytes: int, up_bytes: int, begin: float) -> Trip:
        """A client's part in round ``number``, from ``begin``; whoever has begun is not switched off."""
        row = {name: float(column[client]) for name, column in self._rows.items()}
        generator = self._seed.child(number, client).numpy()
        crash, point = generator.random(2)
        wobble = generator.normal(0.0, 1.0, 2) * row["jitter_ms"] / 1000
        down = _transfer(down_bytes, row["down_mbps"], row["loss"], row["latency_ms"] / 1000 + wobble[0])
        up = _transfer(up_bytes, row["up_mbps"], row["loss"], row["latency_ms"] / 1000 + wobble[1])
        compute = steps * self._seconds_per_step * row["compute_factor"]
        total, lost = down + compute + up, bool(crash < row["crash_rate"])
        spent = float(point) * total if lost else total
        joule = min(compute, max(0.0, spent - down)) * row["compute_watts"]
        joule += down_bytes / 1e6 * row["down_joule_per_mb"] * (min(1.0, spent / down) if down else 1.0)
        if up and spent > down + compute:
            joule += up_bytes / 1e6 * row["up_joule_per_mb"] * min(1.0, (spent - down - compute) / up)
        elif not up and not lost:
            joule += up_bytes / 1e6 * row["up_joule_per_mb"]
        return Trip(client, begin + spent, lost, joule)

    def round(self, trips: Sequence[Trip], wanted: int) -> RoundSchedule:
        """Whom the server waits for, and until when; time passes.

        The first ``wanted`` replies count, ties by client number, until the deadline. With fewer, the round ends when
        the last has answered or is lost, or at the deadline.
        """
        limit = self.now + self._deadline if self._deadline else math.inf
        arrivals = sorted((trip.end, trip.client) for trip in trips if not trip.lost and trip.end <= limit)[:wanted]
        if len(arrivals) == wanted:
            end = arrivals[-1][0]
        else:
            end = min(limit, max((trip.end for trip in trips), default=self.now))
        used = {client for _, client in arrivals}
        plan = RoundSchedule(
            [t.client for t in trips if t.client in used],
            [t.client for t in trips if t.client not in used and not t.lost],
            [t.client for t in trips if t.lost],
            end - self.now,
            sum(t.joule for t in trips),
        )
        self.now = end
        return plan

    def _phase(self, at: float, clients: int | slice | NDArray[np.int64]) -> NDArray[np.float64]:
        return np.asarray((at / self._rows["period_s"][clients] + self._rows["phase"][clients]) % 1.0)

    def _on(self, at: float, clients: int | slice = slice(None)) -> NDArray[np.bool_]:
        return np.asarray(self._phase(at, clients) < self._rows["availability"][clients])

    def _next_on(self, clients: NDArray[np.int64]) -> NDArray[np.float64]:
        phase = self._phase(self.now, clients)
        wait = (1.0 - phase) * self._rows["period_s"][clients]
        # A little past the turn of the period, so that rounding cannot leave it just before.
        return np.where(phase < self._rows["availability"][clients], self.now, self.now + wait * (1 + 1e-9) + 1e-6)


def _transfer(size: int, mbps: float, loss: float, latency: float) -> float:
    """Seconds of a message of ``size`` bytes; 0 Mbit/s = no limit."""
    return max(0.0, latency) + (size * 8e-6 / (mbps * (1.0 - loss)) if mbps else 0.0)


def _tries(size: int) -> int:
    """Draws before everybody is looked at: enough where one in eight is on."""
    return 64 + 16 * size
