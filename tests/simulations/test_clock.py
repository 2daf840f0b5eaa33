"""Virtual clock and device populations: times and energy computed by hand, round deadlines, drawn distributions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from farshore.core.errors import ConfigError
from farshore.core.seeds import Seed
from farshore.simulations.clock import RoundTrip, VirtualClock
from farshore.simulations.population import Population, bundled_populations


def clock(profile: dict[str, Any], count: int = 4, **more: Any) -> VirtualClock:
    population = Population.from_groups({"groups": [{"profile": profile}]}, count, Seed(1))
    return VirtualClock(population, 0.5, Seed(1), **more)


def test_round_trip_time_and_energy_are_the_sum_of_download_compute_and_upload() -> None:
    link = {"down_mbps": 8, "up_mbps": 4, "latency_ms": 100, "loss": 0.5, "up_joule_per_mb": 3, "down_joule_per_mb": 2}
    virtual_clock = clock({"link": link, "compute_factor": 3, "compute_watts": 10})
    trip = virtual_clock.round_trip(1, 0, steps=4, down_bytes=10**6, up_bytes=2 * 10**6, begin=7.0)
    down, compute, up = 0.1 + 1 / 0.5, 4 * 0.5 * 3, 0.1 + 4 / 0.5
    assert trip.end == pytest.approx(7.0 + down + compute + up)
    assert trip.joule == pytest.approx(10 * compute + 2 + 2 * 3)
    assert not trip.lost


def test_clients_crash_during_the_round_trip_at_the_crash_rate() -> None:
    virtual_clock = clock({"crash_rate": 0.25, "compute_watts": 1})
    trips = [virtual_clock.round_trip(round_index, 1, 10, 0, 0, 0.0) for round_index in range(2000)]
    lost = [trip for trip in trips if trip.lost]
    assert 420 < len(lost) < 580
    assert all(0 <= trip.end < 5.0 for trip in lost)
    assert all(trip.joule == pytest.approx(trip.end) for trip in trips)
    assert trips == [virtual_clock.round_trip(round_index, 1, 10, 0, 0, 0.0) for round_index in range(2000)]


def trips(*ends: float | None) -> list[RoundTrip]:
    return [RoundTrip(i, 3.0 if end is None else end, end is None, 1.0) for i, end in enumerate(ends)]


@pytest.mark.parametrize(
    ("ends", "needed", "deadline", "expected"),
    [
        ((5.0, 1.0, 2.0), 3, 0.0, ([0, 1, 2], [], [], 5.0)),
        ((2.0, 2.0, 1.0, 2.0), 2, 0.0, ([0, 2], [1, 3], [], 2.0)),  # ties by client number
        ((9.0, 1.0, 2.0), 3, 4.0, ([1, 2], [0], [], 4.0)),
        ((None, 1.0, 2.0), 3, 4.0, ([1, 2], [], [0], 3.0)),  # no waiting for the lost client
        ((9.0, 8.0), 2, 4.0, ([], [0, 1], [], 4.0)),
    ],
)
def test_round_ends_with_the_last_needed_reply_or_at_the_deadline(
    ends: Any, needed: int, deadline: float, expected: Any
) -> None:
    virtual_clock = clock({}, deadline=deadline)
    schedule = virtual_clock.finish_round(trips(*ends), needed)
    assert (schedule.used, schedule.late, schedule.lost, schedule.seconds) == expected
    assert virtual_clock.now == expected[3]


def test_clients_are_online_for_their_availability_and_only_online_clients_are_drawn() -> None:
    virtual_clock = clock({"availability": 0.25, "period_s": 100}, count=1000)
    for now in (0.0, 30.0, 1234.5):
        virtual_clock.now = now
        online = [client for client in range(1000) if virtual_clock.is_online(client)]
        assert 190 < len(online) < 310
        drawn = virtual_clock.draw(Seed(4), 40)
        assert len(set(drawn)) == 40
        assert set(drawn) <= set(online)
        assert virtual_clock.draw(Seed(4), 500) == online  # fewer than requested: all of them
    client = next(c for c in range(1000) if not virtual_clock.is_online(c))
    later = virtual_clock.next_online(client)
    assert 0 < later - virtual_clock.now <= 75.01
    virtual_clock.now = later - 0.01
    assert not virtual_clock.is_online(client)
    virtual_clock.now = later
    assert virtual_clock.is_online(client)
    virtual_clock.now = later + 24.9
    assert virtual_clock.is_online(client)


def test_clock_advances_until_a_client_is_online() -> None:
    virtual_clock = clock({"availability": 0.001, "period_s": 1000}, count=1)
    assert not virtual_clock.is_online(0)
    assert virtual_clock.draw(Seed(1), 1) == [0]
    assert 0 < virtual_clock.now <= 1001


def test_groups_have_their_size_and_spreads_their_distribution() -> None:
    spec = {
        "groups": [
            {"count": 3, "profile": {"compute_factor": 50}},
            {"share": 3, "profile": {"compute_factor": 2}, "spread": {"compute_factor": {"lognormal": 0.1}}},
            {"share": 1, "spread": {"up_mbps": {"uniform": [5, 6]}}},
        ]
    }
    drawn = Population.from_groups(spec, 4003, Seed(2)).columns
    assert (drawn["compute_factor"] == 50).sum() == 3
    assert (drawn["compute_factor"] == 1).sum() == 1000
    others = drawn["compute_factor"][~np.isin(drawn["compute_factor"], (1, 50))]
    assert abs(np.median(others) - 2) < 0.02
    assert abs(np.log(others).std() - 0.1) < 0.01
    up = drawn["up_mbps"][drawn["compute_factor"] == 1]
    assert up.min() >= 5
    assert up.max() <= 6
    assert up.std() > 0.25
    again = Population.from_groups(spec, 4003, Seed(2)).columns
    assert all(np.array_equal(drawn[name], again[name]) for name in drawn)
    assert not np.array_equal(drawn["phase"], Population.from_groups(spec, 4003, Seed(3)).columns["phase"])


def test_bundled_populations_are_valid() -> None:
    assert bundled_populations() == ["one-straggler", "phones-4g", "wifi-laptops"]
    for name in bundled_populations():
        assert Population.from_groups(name, 10, Seed(1)).count == 10


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
def test_invalid_devices_raise_config_error(spec: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="devices"):
        Population.from_groups(spec, 10, Seed(1))
