"""FedAsync and FedBuff: published weights, FedAvg as a special case, real programs, virtual time, resuming."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from farshore.algorithms.vhl.config import VHL
from farshore.algorithms.vhl.workload import WORKLOAD
from farshore.core.errors import ConfigError
from farshore.engines.federated.asynchronous import apply_buffer, mix, staleness_weight
from farshore.engines.federated.config import Asynchrony
from farshore.engines.federated.methods import FedAvg
from farshore.runs.directory import RunDirectory
from farshore.runs.history import read_history
from farshore.simulations.clock import Devices
from farshore.simulations.federated.simulation import Simulation
from farshore.simulations.in_process import InProcessRun
from farshore.simulations.population import Groups

SMALL: dict[str, Any] = {
    "virtual": {"enabled": False},
    "partition": {"kind": "iid"},
    "model": "conv3",
    "local_epochs": 1,
    "lr": 0.05,
    "per_round": 3,
}


def make_devices(*groups: dict[str, Any]) -> Devices:
    return Devices(population=Groups.model_validate({"groups": list(groups) or [{}]}), seconds_per_step=1.0)


def simulate(path: Path, settings: dict[str, Any], devices: Devices | None, clients: int = 3) -> Any:
    """Run a simulation; return its result, history and last state."""
    from farshore.runs.checkpoints import CheckpointStore

    config = VHL.model_validate({**SMALL, **settings})
    simulation = Simulation(WORKLOAD, config, path, clients, seed=1, devices=devices)
    result = simulation.run()
    state, _ = CheckpointStore(path / "checkpoints").load(config.rounds)
    return result, read_history(path, config.rounds), state


def test_staleness_weights_equal_the_published_ones() -> None:
    polynomial = [staleness_weight(Asynchrony(), tau) for tau in (0, 1, 3, 8)]
    assert polynomial == pytest.approx([1, 1 / math.sqrt(2), 1 / 2, 1 / 3], rel=1e-15)
    hinge = Asynchrony(staleness="hinge", a=10, b=4)
    assert [staleness_weight(hinge, tau) for tau in (0, 4, 5, 6)] == [1, 1, 1 / 11, 1 / 21]
    assert staleness_weight(Asynchrony(staleness="constant"), 100) == 1


def test_updates_equal_values_computed_by_hand() -> None:
    def part(floats: float, integers: int) -> Any:
        return {"floats": np.array([floats], np.float32), "integers": np.array([integers])}

    state = mix(part(1.0, 10), part(3.0, 20), 0.25)
    assert (state["floats"][0], state["integers"][0]) == (1.5, 12)
    changes = [(1.0, part(3.0, 14), part(1.0, 10)), (0.5, part(9.0, 20), part(5.0, 12))]
    state = apply_buffer(part(10.0, 100), changes, 0.5)
    assert (state["floats"][0], state["integers"][0]) == (10 + 0.5 / 2 * (2 + 0.5 * 4), 102)


def test_fedbuff_with_equal_devices_and_a_full_buffer_equals_fedavg(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weighted = FedAvg.contribution
    # FedBuff weighs replies equally, so FedAvg has to here.
    monkeypatch.setattr(FedAvg, "contribution", lambda self, down, u: weighted(self, down, replace(u, samples=1)))
    # One version only: sums in another order differ by 1e-7, and a ReLU that flips makes it 1e-4 in later versions.
    _, history, averaged = simulate(tmp_path / "a", {"rounds": 1}, None)
    _, versions, state = simulate(tmp_path / "b", {"rounds": 1, "schedule": "fedbuff"}, make_devices())
    assert versions[0]["staleness"] == 0
    assert np.allclose(state["floats"], averaged["floats"], atol=1e-6)
    assert np.array_equal(state["integers"], averaged["integers"])
    assert versions[-1]["train_loss"] == pytest.approx(history[-1]["train_loss"], rel=1e-3)


def test_a_straggler_delays_synchronous_rounds_but_not_fedasync(tmp_path: Path) -> None:
    made = make_devices({"count": 1, "profile": {"compute_factor": 50}}, {})
    sync_result, _, _ = simulate(tmp_path / "a", {"rounds": 4}, made)
    async_result, history, state = simulate(tmp_path / "b", {"rounds": 8, "schedule": "fedasync"}, made)
    one = history[0]["simulated_seconds"]
    last = history[-1]["simulated_seconds"]
    assert last == pytest.approx(8 / 2 * one, rel=0.3)  # two clients that never wait
    _, sync_history, _ = simulate(tmp_path / "a", {"rounds": 4}, made)
    assert sync_history[-1]["simulated_seconds"] == pytest.approx(4 * 50 * one, rel=1e-6)
    _, repeated, same = simulate(tmp_path / "c", {"rounds": 8, "schedule": "fedasync"}, made)
    assert [e["cohort"] for e in repeated] == [e["cohort"] for e in history]
    assert np.array_equal(same["floats"], state["floats"])
    assert sync_result["rounds"] == 4
    assert async_result["rounds"] == 8


@pytest.mark.parametrize("schedule", ["fedasync", "fedbuff"])
def test_asynchronous_programs_learn_digits_and_resume(
    tmp_path: Path, schedule: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {**SMALL, "schedule": schedule, "asynchrony": {"buffer": 2}, "checkpoint_every": 4}
    nodes = [f"n{i}" for i in range(4)]
    first = VHL.model_validate({**settings, "rounds": 8})
    InProcessRun(WORKLOAD, first, tmp_path / "run", nodes, seed=2).run()
    longer, versions = VHL.model_validate({**settings, "rounds": 24}), list[int]()
    run = InProcessRun(WORKLOAD, longer, tmp_path / "run", nodes, seed=2, on_metrics=lambda n, _: versions.append(n))
    with caplog.at_level("INFO"):
        result = run.run()
    assert "resuming after version 8: training in progress at that time is lost" in caplog.text
    assert versions == list(range(9, 25))
    assert result["rounds"] == 24
    assert max(v for k, v in result.items() if "acc" in k and isinstance(v, float)) > 0.6


@pytest.mark.parametrize("schedule", ["fedasync", "fedbuff"])
def test_a_resumed_simulation_restores_trainings_in_progress(tmp_path: Path, schedule: str) -> None:
    settings = {**SMALL, "schedule": schedule, "asynchrony": {"buffer": 2, "concurrency": 4}, "checkpoint_every": 4}
    config = VHL.model_validate({**settings, "rounds": 10, "eval_every": 10})
    made = make_devices({"count": 2, "profile": {"compute_factor": 7}}, {"profile": {"crash_rate": 0.2}})

    def on_progress(done: int, total: int, figures: Any) -> None:
        if done == 6:  # the files as a kill would leave them
            shutil.copytree(tmp_path / "whole", tmp_path / "killed")

    simulation = partial(Simulation, WORKLOAD, config, clients=8, seed=1, devices=made)
    expected = simulation(directory=tmp_path / "whole", on_progress=on_progress).run()
    tensors, meta = RunDirectory.open(tmp_path / "killed").checkpoints.load(4)
    versions = {round_index for _, round_index, *_ in meta["under_way"]}
    assert len(versions) > 1, "all clients train from one version, so this test proves little"
    assert {name.split("/")[1] for name in tensors if name.startswith("seen/")} == {
        str(round_index) for round_index in versions
    }
    assert simulation(directory=tmp_path / "killed").run() == expected
    assert read_history(tmp_path / "killed", 10) == read_history(tmp_path / "whole", 10)
    ends = [RunDirectory.open(tmp_path / name).checkpoints.load(10) for name in ("whole", "killed")]
    assert ends[0][1] == ends[1][1]
    one, other = ({name: array.tobytes() for name, array in tensors.items()} for tensors, _ in ends)
    assert one == other


@pytest.mark.parametrize("method", ["scaffold", "fednova"])
def test_methods_that_need_synchronous_rounds_are_refused(tmp_path: Path, method: str) -> None:
    with pytest.raises(ConfigError, match="needs synchronous rounds"):
        simulate(tmp_path / "run", {"rounds": 1, "method": method, "schedule": "fedasync"}, make_devices())


def test_an_asynchronous_simulation_needs_devices(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="depends on the devices"):
        simulate(tmp_path / "run", {"rounds": 1, "schedule": "fedbuff"}, None)


def test_unavailable_clients_are_not_chosen_while_others_are_available(tmp_path: Path) -> None:
    made = make_devices({"profile": {"availability": 0.3, "period_s": 1e6}})
    _, history, _ = simulate(tmp_path / "run", {"rounds": 6, "schedule": "fedbuff"}, made, clients=20)
    assert history[-1]["simulated_seconds"] < 1e4


def test_a_learning_rate_by_participation_needs_synchronous_cohorts() -> None:
    with pytest.raises(ValueError, match="only schedule 'sync' draws"):
        VHL.model_validate({"lr_clock": "participation", "schedule": "fedbuff"})
