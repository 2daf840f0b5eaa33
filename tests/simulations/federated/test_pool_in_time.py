"""Simulated rounds on devices: the same whoever plays, late bytes counted, and a resumed run's clock goes on."""

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


def last(made: RunDirectory) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    step = max(made.checkpoints.steps())
    return made.checkpoints.load(step)[0], read_history(made.path, step)


def test_rounds_on_devices_are_told_in_time_and_bytes(tmp_path: Path) -> None:
    made = run(tmp_path / "run", "fedavg", 4)
    _, history = last(made)
    rows = made.read_ledger().to_pylist()
    for entry in history:
        assert len(entry["cohort"]) == 6  # half as many again as are wanted
        ok, late, lost = (int(entry[f"clients_{what}"]) for what in ("ok", "late", "lost"))
        assert ok + late + lost == 6
        assert ok <= 4
        assert len(entry["missing"]) == late + lost
        mine = [r for r in rows if r["round"] == entry["round"] and r["kind"] in ("model", "update")]
        assert sum(r["kind"] == "model" for r in mine) == 6
        # Whoever is late has sent its update all the same; whoever crashed has not.
        assert sum(r["kind"] == "update" for r in mine) == ok + late
        assert 0 < entry["round_seconds"] <= 3.0
    assert sum(e["clients_late"] for e in history) > 0
    assert sum(e["clients_lost"] for e in history) > 0
    times = [e["simulated_seconds"] for e in history]
    assert times == pytest.approx(list(np.cumsum([e["round_seconds"] for e in history])))


def test_who_is_late_has_sent_the_bytes_that_it_would_have_sent_in_time(tmp_path: Path) -> None:
    def frames(made: RunDirectory) -> dict[tuple[int, str], int]:
        rows = made.read_ledger().to_pylist()
        return {(r["round"], r["node"]): r["frame_bytes"] for r in rows if r["kind"] == "update"}

    made = run(tmp_path / "timed", "fedavg", 3)
    assert sum(entry["clients_late"] for entry in last(made)[1]) > 0
    config = VHL.model_validate({**SETTINGS, "per_round": 8, "method": "fedavg", "rounds": 3, "lr": 0.1})
    Simulation(WORKLOAD, config, tmp_path / "all", 8, seed=3).run()
    everybodys = frames(RunDirectory.open(tmp_path / "all"))
    found = frames(made)
    assert found == {who: everybodys[who] for who in found}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fedavg", "scaffold"])
def test_workers_give_the_bits_the_times_and_the_ledger_of_one_player(tmp_path: Path, method: str) -> None:
    one, two = run(tmp_path / "one", method, 3), run(tmp_path / "two", method, 3, workers=2)
    (state, history), (other, same) = last(one), last(two)
    assert history == same
    assert all(np.array_equal(state[name], other[name]) for name in state)
    sizes = [[{k: v for k, v in r.items() if k != "time"} for r in m.read_ledger().to_pylist()] for m in (one, two)]
    assert sorted(map(str, sizes[0])) == sorted(map(str, sizes[1]))


def test_a_run_that_goes_on_goes_on_in_time(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", "scaffold", 6)
    half = run(tmp_path / "half", "scaffold", 6)
    # As if it had been killed after round 4: the newest checkpoint and the result are gone.
    for path in (half.path / "checkpoints").iterdir():
        if path.name.startswith("step-000000000006"):
            path.unlink()
    (half.path / "result.json").unlink()
    again = run(tmp_path / "half", "scaffold", 6)
    (state, history), (other, same) = last(whole), last(again)
    assert history == same
    assert all(np.array_equal(state[name], other[name]) for name in state)
