"""The number of worker processes of a simulation is limited by the cores of the machine."""

from __future__ import annotations

import pytest

from farshore.cli import scenarios
from farshore.cli.scenarios import Engine
from farshore.simulations import experiment


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "cores", lambda: 8)


@pytest.mark.parametrize(
    ("workers", "threads", "expected"),
    [(0, 1, 8), (8, 1, 8), (3, 2, 3), (4, 2, 4), (0, 2, 4), (0, 3, 2), (0, 0, 1), (0, 16, 1)],
)
def test_worker_counts_within_the_cores_are_kept(
    workers: int, threads: int, expected: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Engine.from_options(workers, "local", "", threads).cores == expected
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("workers", "threads", "expected", "message"),
    [
        (20, 1, 8, "20 workers of one thread exceed the 8 available cores; using 8"),
        (5, 2, 4, "5 workers of 2 threads exceed the 8 available cores; using 4"),
        (2, 0, 1, "2 workers of 8 threads exceed the 8 available cores; using 1"),
    ],
)
@pytest.mark.parametrize("backend", ["local", "ray"])
def test_worker_counts_above_the_cores_are_reduced_with_a_note(
    backend: str, workers: int, threads: int, expected: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Engine.from_options(workers, backend, "", threads).cores == expected
    assert message in " ".join(capsys.readouterr().err.split())


def test_workers_on_a_ray_cluster_are_not_limited_by_local_cores(capsys: pytest.CaptureFixture[str]) -> None:
    engine = Engine.from_options(64, "ray", "10.0.0.1:6379", 4)
    assert (engine.cores, engine.plan(3)) == (64, (1, 64))
    assert capsys.readouterr().err == ""


def test_the_arm_with_the_most_threads_determines_the_limit() -> None:
    _, scenario = scenarios.find_scenario("vhl")
    configs = scenarios.configs(scenario, ["threads=3"])
    assert scenarios.threads_of(configs) == 3
    assert scenarios.threads_of({**configs, "all": {"threads": 0}}) == 0
