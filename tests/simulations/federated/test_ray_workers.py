"""Ray actors have the bits of one process, even if one of them is lost in the middle of a round."""

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
from farshore.simulations.federated.ray_workers import RayWorkers, balance
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


def run(directory: Path, method: str = "scaffold", **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    settings: dict[str, Any] = {"rounds": ROUNDS, "per_round": 7, "local_epochs": 1, "lr": 0.1, "eval_every": 3}
    settings |= {"partition": {"kind": "lda", "alpha": 0.5, "min_size": 10}, "method": method}
    config = WORKLOAD.config.model_validate({**settings, "virtual": {"enabled": False}})
    result = Simulation(WORKLOAD, config, directory, CLIENTS, 3, **options).run()
    return result, RunDirectory.open(directory).checkpoints.load(ROUNDS)[0]


@pytest.mark.slow
def test_a_lost_actor_changes_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    request, killed = RayWorkers._request, []

    def request_and_kill(self: RayWorkers, index: int, round_index: int, assigned: Any, state: Any) -> Any:
        if round_index != 2 or killed:
            return request(self, index, round_index, assigned, state)
        killed.append(ray.get(self._actors[index].ready.remote()))
        reference = request(self, index, round_index, assigned, state)
        time.sleep(0.02)  # the actor has started
        os.kill(killed[0], signal.SIGKILL)
        return reference

    monkeypatch.setattr(RayWorkers, "_request", request_and_kill)
    result, state = run(tmp_path / "ray", workers=2, backend="ray")
    assert killed
    expected_result, expected = run(tmp_path / "alone")
    assert result == expected_result
    assert [name for name in expected if not np.array_equal(expected[name], state[name])] == []


def test_largest_blocks_are_assigned_first_to_the_least_loaded_actor() -> None:
    cohort_blocks = [(0, [1, 2]), (2, [3, 4]), (4, [5, 6]), (6, [7])]
    samples = {1: 1, 2: 1, 3: 50, 4: 50, 5: 30, 6: 30, 7: 30}
    assert balance(cohort_blocks, samples, 2) == [[(2, [3, 4])], [(4, [5, 6]), (6, [7]), (0, [1, 2])]]


@pytest.mark.slow
def test_actor_that_fails_to_start_fails_the_run_with_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(WORKLOAD), "name", "nowhere")
    with pytest.raises(RunFailedError, match="unknown method 'nowhere'"):
        run(tmp_path / "run", workers=1, backend="ray")
