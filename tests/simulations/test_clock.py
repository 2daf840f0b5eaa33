"""Virtual time: figures by hand, whom a round waits for, and populations that are drawn as they are described."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from farshore.core.errors import ConfigError
from farshore.core.seeds import Seed
from farshore.simulations.clock import Trip, VirtualClock
from farshore.simulations.population import Population, ready


def clock(profile: dict[str, Any], count: int = 4, **more: Any) -> VirtualClock:
    population = Population.from_spec({"groups": [{"profile": profile}]}, count, Seed(1))
    return VirtualClock(population, 0.5, Seed(1), **more)


def test_a_trip_is_down_compute_and_up() -> None:
    link = {"down_mbps": 8, "up_mbps": 4, "latency_ms": 100, "loss": 0.5, "up_joule_per_mb": 3, "down_joule_per_mb": 2}
    made = clock({"link": link, "compute_factor": 3, "compute_watts": 10})
    trip = made.trip(1, 0, steps=4, down_bytes=10**6, up_bytes=2 * 10**6, begin=7.0)
    down, compute, up = 0.1 + 1 / 0.5, 4 * 0.5 * 3, 0.1 + 4 / 0.5
    assert trip.end == pytest.approx(7.0 + down + compute + up)
    assert trip.joule == pytest.approx(10 * compute + 2 + 2 * 3)
    assert not trip.lost


def test_whoever_crashes_does_so_on_the_way_and_as_often_as_said() -> None:
    made = clock({"crash_rate": 0.25, "compute_watts": 1})
    trips = [made.trip(number, 1, 10, 0, 0, 0.0) for number in range(2000)]
    lost = [trip for trip in trips if trip.lost]
    assert 420 < len(lost) < 580
    assert all(0 <= trip.end < 5.0 for trip in lost)
    assert all(trip.joule == pytest.approx(trip.end) for trip in trips)
    assert trips == [made.trip(number, 1, 10, 0, 0, 0.0) for number in range(2000)]


def trips(*ends: float | None) -> list[Trip]:
    return [Trip(i, 3.0 if end is None else end, end is None, 1.0) for i, end in enumerate(ends)]


@pytest.mark.parametrize(
    ("ends", "wanted", "deadline", "outcome"),
    [
        ((5.0, 1.0, 2.0), 3, 0.0, ([0, 1, 2], [], [], 5.0)),
        ((2.0, 2.0, 1.0, 2.0), 2, 0.0, ([0, 2], [1, 3], [], 2.0)),  # ties by number
        ((9.0, 1.0, 2.0), 3, 4.0, ([1, 2], [0], [], 4.0)),
        ((None, 1.0, 2.0), 3, 4.0, ([1, 2], [], [0], 3.0)),  # the loss is noticed, nobody else is waited for
        ((9.0, 8.0), 2, 4.0, ([], [0, 1], [], 4.0)),
    ],
)
def test_whom_a_round_waits_for(ends: Any, wanted: int, deadline: float, outcome: Any) -> None:
    made = clock({}, deadline=deadline)
    plan = made.round(trips(*ends), wanted)
    assert (plan.used, plan.late, plan.lost, plan.seconds) == outcome
    assert made.now == outcome[3]


def test_clients_are_on_for_their_share_of_each_period_and_only_they_are_drawn() -> None:
    made = clock({"availability": 0.25, "period_s": 100}, count=1000)
    for now in (0.0, 30.0, 1234.5):
        made.now = now
        on = [client for client in range(1000) if made.on(client)]
        assert 190 < len(on) < 310
        drawn = made.draw(Seed(4), 40)
        assert len(set(drawn)) == 40
        assert set(drawn) <= set(on)
        assert made.draw(Seed(4), 500) == on  # too few: all of them
    client = next(c for c in range(1000) if not made.on(c))
    later = made.next_on(client)
    assert 0 < later - made.now <= 75.01
    made.now = later - 0.01
    assert not made.on(client)
    made.now = later
    assert made.on(client)
    made.now = later + 24.9
    assert made.on(client)


def test_time_passes_until_somebody_is_on() -> None:
    made = clock({"availability": 0.001, "period_s": 1000}, count=1)
    assert not made.on(0)
    assert made.draw(Seed(1), 1) == [0]
    assert 0 < made.now <= 1001


def test_groups_are_as_large_as_they_say_and_spreads_have_their_median() -> None:
    spec = {
        "groups": [
            {"count": 3, "profile": {"compute_factor": 50}},
            {"share": 3, "profile": {"compute_factor": 2}, "spread": {"compute_factor": {"lognormal": 0.1}}},
            {"share": 1, "spread": {"up_mbps": {"uniform": [5, 6]}}},
        ]
    }
    drawn = Population.from_spec(spec, 4003, Seed(2)).columns
    assert (drawn["compute_factor"] == 50).sum() == 3
    assert (drawn["compute_factor"] == 1).sum() == 1000
    others = drawn["compute_factor"][~np.isin(drawn["compute_factor"], (1, 50))]
    assert abs(np.median(others) - 2) < 0.02
    assert abs(np.log(others).std() - 0.1) < 0.01
    up = drawn["up_mbps"][drawn["compute_factor"] == 1]
    assert up.min() >= 5
    assert up.max() <= 6
    assert up.std() > 0.25
    again = Population.from_spec(spec, 4003, Seed(2)).columns
    assert all(np.array_equal(drawn[name], again[name]) for name in drawn)
    assert not np.array_equal(drawn["phase"], Population.from_spec(spec, 4003, Seed(3)).columns["phase"])


def test_what_comes_with_the_package_can_be_drawn() -> None:
    assert ready() == ["one-straggler", "phones-4g", "wifi-laptops"]
    for name in ready():
        assert Population.from_spec(name, 10, Seed(1)).count == 10


@pytest.mark.parametrize(
    "spec",
    [
        "phones-5g",
        "missing.yaml",
        {"groups": []},
        {"groups": [{"count": 11}]},
        {"groups": [{"count": 9}]},
        {"groups": [{"spread": {"loss": {"uniform": [1, 2]}}}]},
        {"groups": [{"spread": {"up_mbps": {}}}]},
        {"groups": [{"profile": {"availability": 0}}]},
    ],
)
def test_wrong_devices_are_one_clear_error(spec: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="devices"):
        Population.from_spec(spec, 10, Seed(1))
