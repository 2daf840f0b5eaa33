"""A simulation starts no more processes and threads than the machine has cores."""

from __future__ import annotations

import pytest

from farshore.cli import scenarios
from farshore.cli.scenarios import Engine
from farshore.simulations import experiment


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "cores", lambda: 8)


@pytest.mark.parametrize(
    ("workers", "threads", "left"),
    [(0, 1, 8), (8, 1, 8), (3, 2, 3), (4, 2, 4), (0, 2, 4), (0, 3, 2), (0, 0, 1), (0, 16, 1)],
)
def test_what_has_room_is_left_as_it_is(
    workers: int, threads: int, left: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Engine.of(workers, "local", "", threads).cores == left
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("workers", "threads", "left", "said"),
    [
        (20, 1, 8, "20 workers of one thread are more than the 8 cores here: 8 will do the work"),
        (5, 2, 4, "5 workers of 2 threads are more than the 8 cores here: 4 will do the work"),
        (2, 0, 1, "2 workers of 8 threads are more than the 8 cores here: 1 will do the work"),
    ],
)
@pytest.mark.parametrize("backend", ["local", "ray"])
def test_more_than_the_cores_are_fewer_and_it_is_said(
    backend: str, workers: int, threads: int, left: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Engine.of(workers, backend, "", threads).cores == left
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_cluster_knows_its_own_cores(capsys: pytest.CaptureFixture[str]) -> None:
    engine = Engine.of(64, "ray", "10.0.0.1:6379", 4)
    assert (engine.cores, engine.plan(3)) == (64, (1, 64))
    assert capsys.readouterr().err == ""


def test_the_arm_with_most_threads_decides() -> None:
    _, scenario = scenarios.find("vhl")
    configs = scenarios.configs(scenario, ["threads=3"])
    assert scenarios.threads_of(configs) == 3
    assert scenarios.threads_of({**configs, "all": {"threads": 0}}) == 0
