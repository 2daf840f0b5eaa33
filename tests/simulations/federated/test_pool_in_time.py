"""Simulated rounds with devices: the same for any number of workers, late updates counted, virtual time on resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from farshore.algorithms.vhl.config import VHL
from farshore.algorithms.vhl.workload import WORKLOAD
from farshore.runs.directory import RunDirectory
from farshore.runs.history import read_history
from farshore.simulations.clock import Devices
from farshore.simulations.federated.simulation import Simulation
from farshore.simulations.population import Groups

GROUPS = [
    {"count": 2, "profile": {"compute_factor": 40, "link": {"up_mbps": 1, "down_mbps": 4, "latency_ms": 50}}},
    {"profile": {"crash_rate": 0.2, "link": {"up_mbps": 5, "down_mbps": 20, "latency_ms": 20, "jitter_ms": 5}}},
]
DEVICES = Devices(population=Groups.model_validate({"groups": GROUPS}), seconds_per_step=0.01, deadline=3.0, over=1.5)
SETTINGS: dict[str, Any] = {"per_round": 4, "local_epochs": 1, "checkpoint_every": 2, "partition": {"kind": "iid"}}


def run(path: Path, method: str, rounds: int, workers: int = 1, devices: Devices | None = DEVICES) -> RunDirectory:
    config = VHL.model_validate({**SETTINGS, "method": method, "rounds": rounds, "lr": 0.1})
    Simulation(WORKLOAD, config, path, 8, seed=3, workers=workers, devices=devices).run()
    return RunDirectory.open(path)


def final_state(directory: RunDirectory) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    step = max(directory.checkpoints.steps())
    return directory.checkpoints.load(step)[0], read_history(directory.path, step)


def test_rounds_on_devices_report_times_outcomes_and_bytes(tmp_path: Path) -> None:
    directory = run(tmp_path / "run", "fedavg", 4)
    _, history = final_state(directory)
    rows = directory.read_ledger().to_pylist()
    for entry in history:
        assert len(entry["cohort"]) == 6  # 1.5 times the 4 replies needed
        ok, late, lost = (int(entry[f"clients_{outcome}"]) for outcome in ("ok", "late", "lost"))
        assert ok + late + lost == 6
        assert ok <= 4
        assert len(entry["missing"]) == late + lost
        round_rows = [r for r in rows if r["round"] == entry["round"] and r["kind"] in ("model", "update")]
        assert sum(r["kind"] == "model" for r in round_rows) == 6
        # Late clients sent their update too; crashed ones did not.
        assert sum(r["kind"] == "update" for r in round_rows) == ok + late
        assert 0 < entry["round_seconds"] <= 3.0
    assert sum(e["clients_late"] for e in history) > 0
    assert sum(e["clients_lost"] for e in history) > 0
    times = [e["simulated_seconds"] for e in history]
    assert times == pytest.approx(list(np.cumsum([e["round_seconds"] for e in history])))


def test_late_updates_have_the_size_of_updates_in_time(tmp_path: Path) -> None:
    def frames(directory: RunDirectory) -> dict[tuple[int, str], int]:
        rows = directory.read_ledger().to_pylist()
        return {(r["round"], r["node"]): r["frame_bytes"] for r in rows if r["kind"] == "update"}

    directory = run(tmp_path / "timed", "fedavg", 3)
    assert sum(entry["clients_late"] for entry in final_state(directory)[1]) > 0
    config = VHL.model_validate({**SETTINGS, "per_round": 8, "method": "fedavg", "rounds": 3, "lr": 0.1})
    Simulation(WORKLOAD, config, tmp_path / "all", 8, seed=3).run()
    all_frames = frames(RunDirectory.open(tmp_path / "all"))
    timed_frames = frames(directory)
    assert timed_frames == {key: all_frames[key] for key in timed_frames}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fedavg", "scaffold"])
def test_workers_have_the_bits_times_and_ledger_of_one_process(tmp_path: Path, method: str) -> None:
    one, two = run(tmp_path / "one", method, 3), run(tmp_path / "two", method, 3, workers=2)
    (state, history), (other, same) = final_state(one), final_state(two)
    assert history == same
    assert all(np.array_equal(state[name], other[name]) for name in state)
    sizes = [[{k: v for k, v in r.items() if k != "time"} for r in m.read_ledger().to_pylist()] for m in (one, two)]
    assert sorted(map(str, sizes[0])) == sorted(map(str, sizes[1]))


def test_resumed_run_continues_in_virtual_time(tmp_path: Path) -> None:
    uninterrupted = run(tmp_path / "whole", "scaffold", 6)
    interrupted = run(tmp_path / "half", "scaffold", 6)
    # As if it had been killed after round 4: the newest checkpoint and the result are gone.
    for path in (interrupted.path / "checkpoints").iterdir():
        if path.name.startswith("step-000000000006"):
            path.unlink()
    (interrupted.path / "result.json").unlink()
    resumed = run(tmp_path / "half", "scaffold", 6)
    (state, history), (other, same) = final_state(uninterrupted), final_state(resumed)
    assert history == same
    assert all(np.array_equal(state[name], other[name]) for name in state)
