"""VHL as a Flower app has the results of our own engine, on our grid and on Flower's."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from farshore.runs.directory import RunDirectory
from farshore.runs.history import read_history
from farshore.simulations.flower_app import flower_run, simulate_app

pytest.importorskip("flwr")
from farshore.algorithms.vhl.workload import WORKLOAD
from farshore.simulations.federated.simulation import Simulation
from farshore.simulations.flower_vhl.learning import settings_of

ROOT = Path(__file__).resolve().parents[2]
APP = ROOT / "simulations" / "flower_vhl"
CLIENTS, ROUNDS = 4, 3
SMALL = {"clients": CLIENTS, "seed": 3, "vhl.rounds": ROUNDS, "vhl.per_round": 3, "vhl.local_epochs": 1}
SMALL |= {"vhl.virtual.per_class": 10, "vhl.partition.alpha": 1.0, "vhl.momentum": 0.5}


def _flower_engine() -> Any:
    sys.path.insert(0, str(ROOT / "tests" / "engines" / "flower"))
    try:
        return importlib.import_module("flower_engine")
    finally:
        sys.path.pop(0)


def _run_on_our_engine(overrides: dict[str, Any], folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the final state and the history of a run on our own engine."""
    from farshore.engines.flower.project import Project

    settings = settings_of(Project.read(APP).fused(overrides))
    Simulation(WORKLOAD, settings, folder, CLIENTS, seed=3).run()
    return RunDirectory.open(folder).checkpoints.load(ROUNDS)[0], read_history(folder, ROUNDS)


def _assert_equal(out: Path, state: dict[str, Any], history: list[dict[str, Any]]) -> None:
    with np.load(out / "state.npz") as found:
        assert set(found.files) == set(state)
        for name in found.files:
            np.testing.assert_allclose(found[name], state[name], rtol=0, atol=1e-6)
    reported = json.loads((out / "history.json").read_text())
    assert [e["cohort"] for e in reported] == [e["cohort"] for e in history]
    np.testing.assert_allclose([e["acc"] for e in reported], [e["acc"] for e in history], atol=1e-6)
    assert [e["replies"] for e in reported] == [3] * ROUNDS


@pytest.mark.parametrize(("method", "virtual"), [("scaffold", True), ("fednova", True), ("fedprox", False)])
def test_app_on_our_grid_equals_our_engine(method: str, virtual: bool, tmp_path: Path) -> None:
    overrides = SMALL | {"vhl.method": method, "vhl.virtual.enabled": virtual}
    state, history = _run_on_our_engine(overrides, tmp_path / "engine")
    overrides |= {"out": str(tmp_path / "out")}
    result = simulate_app(flower_run(APP, overrides), tmp_path / "grid", CLIENTS)
    assert (result["messages"], result["failures"]) == (CLIENTS + 3 * ROUNDS, 0)
    _assert_equal(tmp_path / "out", state, history)


def test_app_on_flowers_engine_equals_our_engine(tmp_path: Path) -> None:
    overrides = SMALL | {"vhl.method": "scaffold"}
    state, history = _run_on_our_engine(overrides, tmp_path / "engine")
    _flower_engine().run_on_flower(APP, overrides | {"out": str(tmp_path / "out")}, CLIENTS, tmp_path / "flower")
    _assert_equal(tmp_path / "out", state, history)


def test_virtual_data_with_another_digest_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from dataclasses import replace

    from farshore.core.errors import RunFailedError
    from farshore.simulations.flower_vhl import client_app

    real = client_app.learning_problem
    monkeypatch.setattr(client_app, "learning_problem", lambda *a: replace(real(*a), digest="0" * 64))
    with pytest.raises(RunFailedError, match="the virtual data generated here have the digest 000"):
        simulate_app(flower_run(APP, SMALL), tmp_path / "grid", CLIENTS)
