"""Ray's actors give the bits of one process, also when one of them is lost in the middle of a round."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from farshore.algorithms.vhl.workload import WORKLOAD
from farshore.core.errors import RunFailedError
from farshore.runs.directory import RunDirectory
from farshore.simulations.federated.ray_workers import RayWorkers, packed
from farshore.simulations.federated.simulation import Simulation

pytest.importorskip("ray", reason="the extra 'scale' is not installed")
pytest.importorskip("sklearn")
pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]

CLIENTS, ROUNDS = 8, 3


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run(directory: Path, method: str = "scaffold", **more: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    settings: dict[str, Any] = {"rounds": ROUNDS, "per_round": 7, "local_epochs": 1, "lr": 0.1, "eval_every": 3}
    settings |= {"partition": {"kind": "lda", "alpha": 0.5, "min_size": 10}, "method": method}
    config = WORKLOAD.config.model_validate({**settings, "virtual": {"enabled": False}})
    result = Simulation(WORKLOAD, config, directory, CLIENTS, 3, **more).run()
    return result, RunDirectory.open(directory).checkpoints.load(ROUNDS)[0]


@pytest.mark.slow
def test_a_lost_actor_costs_its_share_and_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    ask, killed = RayWorkers._ask, []

    def ask_and_kill(self: RayWorkers, place: int, round_index: int, share: Any, state: Any) -> Any:
        if round_index != 2 or killed:
            return ask(self, place, round_index, share, state)
        killed.append(ray.get(self._actors[place].ready.remote()))
        asked = ask(self, place, round_index, share, state)
        time.sleep(0.02)  # it has begun
        os.kill(killed[0], signal.SIGKILL)
        return asked

    monkeypatch.setattr(RayWorkers, "_ask", ask_and_kill)
    result, state = run(tmp_path / "ray", workers=2, backend="ray")
    assert killed
    alone, expected = run(tmp_path / "alone")
    assert result == alone
    assert [name for name in expected if not np.array_equal(expected[name], state[name])] == []


def test_long_parts_go_first_and_to_whoever_has_least() -> None:
    parts = [(0, [1, 2]), (2, [3, 4]), (4, [5, 6]), (6, [7])]
    samples = {1: 1, 2: 1, 3: 50, 4: 50, 5: 30, 6: 30, 7: 30}
    assert packed(parts, samples, 2) == [[(2, [3, 4])], [(4, [5, 6]), (6, [7]), (0, [1, 2])]]


@pytest.mark.slow
def test_an_actor_that_cannot_begin_ends_the_run_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(WORKLOAD), "name", "nowhere")
    with pytest.raises(RunFailedError, match="no method is called 'nowhere'"):
        run(tmp_path / "run", workers=1, backend="ray")
