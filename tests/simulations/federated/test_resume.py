"""A killed simulation resumes to the bits of an uninterrupted one, and leaves no processes or shared memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from farshore.algorithms.vhl.workload import WORKLOAD
from farshore.runs.directory import RunDirectory
from farshore.simulations.federated.simulation import Simulation

pytest.importorskip("sklearn")
pytestmark = [pytest.mark.process, pytest.mark.timeout(180)]

CLIENTS, ROUNDS = 8, 6

#: Kills itself in the middle of round 4, after the checkpoint of round 2; prints its workers and shared memory first.
KILLED = """
import os, signal, sys, threading
from pathlib import Path
import psutil
from farshore.algorithms.vhl.workload import WORKLOAD
from farshore.simulations.federated.shared_arrays import SharedArrays
from farshore.simulations.federated.simulation import Simulation

created, like = [], SharedArrays.like
def recorded_like(arrays, folder=None):
    shared = like(arrays, folder)
    created.append(shared.description()["memory"])
    return shared
SharedArrays.like = recorded_like

def on_progress(done, total, figures):
    if done == 3:
        print(*(child.pid for child in psutil.Process().children(recursive=True)))
        print(*created, flush=True)
        threading.Timer(float(sys.argv[4]), os.kill, (os.getpid(), signal.SIGKILL)).start()

if __name__ == "__main__":
    config = WORKLOAD.config.model_validate_json(sys.argv[2])
    Simulation(WORKLOAD, config, Path(sys.argv[1]), 8, 3, workers=int(sys.argv[3]), on_progress=on_progress).run()
"""


def config(method: str, *, virtual: bool) -> Any:
    settings: dict[str, Any] = {"rounds": ROUNDS, "per_round": 5, "local_epochs": 1, "lr": 0.1}
    settings |= {"checkpoint_every": 2, "eval_every": 3, "partition": {"kind": "lda", "alpha": 0.5, "min_size": 10}}
    return WORKLOAD.config.model_validate({"method": method, "virtual": {"enabled": virtual}, **settings})


def final_state(directory: Path) -> dict[str, Any]:
    return RunDirectory.open(directory).checkpoints.load(ROUNDS)[0]


@pytest.mark.parametrize(
    ("method", "virtual", "workers"),
    [
        pytest.param("fedavg", False, 1, marks=pytest.mark.slow),
        ("fedavg", True, 2),
        pytest.param("scaffold", False, 2, marks=pytest.mark.slow),
        pytest.param("scaffold", True, 1, marks=pytest.mark.slow),
    ],
)
def test_resumed_simulation_equals_the_uninterrupted_one(
    tmp_path: Path, method: str, virtual: bool, workers: int
) -> None:
    settings = config(method, virtual=virtual)
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    killed = [sys.executable, str(script), str(tmp_path / "run"), settings.model_dump_json(), str(workers), "0.03"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(killed, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -9, done.stderr
    assert RunDirectory.open(tmp_path / "run").result is None
    children, memory = (line.split() for line in done.stdout.splitlines())
    assert bool(memory) == (workers > 1)
    assert _gone([int(pid) for pid in children])
    assert not [name for name in memory if (Path("/dev/shm") / name.lstrip("/")).exists()]

    threads = torch.get_num_threads()
    try:
        resumed = Simulation(WORKLOAD, settings, tmp_path / "run", CLIENTS, 3).run()
        uninterrupted = Simulation(WORKLOAD, settings, tmp_path / "whole", CLIENTS, 3).run()
    finally:
        torch.set_num_threads(threads)
    assert resumed == uninterrupted
    resumed_state, expected = final_state(tmp_path / "run"), final_state(tmp_path / "whole")
    assert resumed_state.keys() == expected.keys()
    assert [name for name in resumed_state if not np.array_equal(resumed_state[name], expected[name])] == []


def _gone(pids: list[int]) -> bool:
    """Whether all processes end within 20 seconds."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        if not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids):
            return True
        time.sleep(0.05)
    return False
