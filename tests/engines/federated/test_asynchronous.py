"""FedAsync and FedBuff: exact weights, FedAvg as a special case, real programs and virtual time."""

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
from farshore.engines.federated.asynchronous import buffered, mixed, staleness_weight
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


def devices(*groups: dict[str, Any]) -> Devices:
    return Devices(population=Groups.model_validate({"groups": list(groups) or [{}]}), seconds_per_step=1.0)


def simulated(path: Path, settings: dict[str, Any], made: Devices | None, clients: int = 3) -> Any:
    """Result, history, and the last state of a simulated run."""
    from farshore.runs.checkpoints import CheckpointStore

    config = VHL.model_validate({**SMALL, **settings})
    simulation = Simulation(WORKLOAD, config, path, clients, seed=1, devices=made)
    result = simulation.run()
    state, _ = CheckpointStore(path / "checkpoints").load(config.rounds)
    return result, read_history(path, config.rounds), state


def test_old_replies_weigh_what_the_papers_say() -> None:
    polynomial = [staleness_weight(Asynchrony(), tau) for tau in (0, 1, 3, 8)]
    assert polynomial == pytest.approx([1, 1 / math.sqrt(2), 1 / 2, 1 / 3], rel=1e-15)
    hinge = Asynchrony(staleness="hinge", a=10, b=4)
    assert [staleness_weight(hinge, tau) for tau in (0, 4, 5, 6)] == [1, 1, 1 / 11, 1 / 21]
    assert staleness_weight(Asynchrony(staleness="constant"), 100) == 1


def test_a_version_is_mixed_or_moved_by_hand() -> None:
    def part(floats: float, integers: int) -> Any:
        return {"floats": np.array([floats], np.float32), "integers": np.array([integers])}

    state = mixed(part(1.0, 10), part(3.0, 20), 0.25)
    assert (state["floats"][0], state["integers"][0]) == (1.5, 12)
    moves = [(1.0, part(3.0, 14), part(1.0, 10)), (0.5, part(9.0, 20), part(5.0, 12))]
    state = buffered(part(10.0, 100), moves, 0.5)
    assert (state["floats"][0], state["integers"][0]) == (10 + 0.5 / 2 * (2 + 0.5 * 4), 102)


def test_fedbuff_on_equal_devices_with_all_in_the_buffer_is_fedavg(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weighted = FedAvg.contribution
    # FedBuff's replies weigh alike, so FedAvg's have to here.
    monkeypatch.setattr(FedAvg, "contribution", lambda self, down, u: weighted(self, down, replace(u, samples=1)))
    # One version: later ones begin from sums of other order, and a rectifier that tips over makes 1e-7 to 1e-4.
    _, history, averaged = simulated(tmp_path / "a", {"rounds": 1}, None)
    _, versions, state = simulated(tmp_path / "b", {"rounds": 1, "schedule": "fedbuff"}, devices())
    assert versions[0]["staleness"] == 0
    assert np.allclose(state["floats"], averaged["floats"], atol=1e-6)
    assert np.array_equal(state["integers"], averaged["integers"])
    assert versions[-1]["train_loss"] == pytest.approx(history[-1]["train_loss"], rel=1e-3)


def test_a_straggler_holds_up_rounds_and_nothing_else(tmp_path: Path) -> None:
    made = devices({"count": 1, "profile": {"compute_factor": 50}}, {})
    waits, _, _ = simulated(tmp_path / "a", {"rounds": 4}, made)
    goes_on, history, state = simulated(tmp_path / "b", {"rounds": 8, "schedule": "fedasync"}, made)
    one = history[0]["simulated_seconds"]
    last = history[-1]["simulated_seconds"]
    assert last == pytest.approx(8 / 2 * one, rel=0.3)  # two clients, each as fast as it can
    _, waited, _ = simulated(tmp_path / "a", {"rounds": 4}, made)
    assert waited[-1]["simulated_seconds"] == pytest.approx(4 * 50 * one, rel=1e-6)
    _, again, same = simulated(tmp_path / "c", {"rounds": 8, "schedule": "fedasync"}, made)
    assert [e["cohort"] for e in again] == [e["cohort"] for e in history]
    assert np.array_equal(same["floats"], state["floats"])
    assert waits["rounds"] == 4
    assert goes_on["rounds"] == 8


@pytest.mark.parametrize("schedule", ["fedasync", "fedbuff"])
def test_real_programs_learn_digits_without_waiting_and_resume(
    tmp_path: Path, schedule: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {**SMALL, "schedule": schedule, "asynchrony": {"buffer": 2}, "checkpoint_every": 4}
    nodes = [f"n{i}" for i in range(4)]
    first = VHL.model_validate({**settings, "rounds": 8})
    InProcessRun(WORKLOAD, first, tmp_path / "run", nodes, seed=2).run()
    longer, told = VHL.model_validate({**settings, "rounds": 24}), list[int]()
    run = InProcessRun(WORKLOAD, longer, tmp_path / "run", nodes, seed=2, on_metrics=lambda n, _: told.append(n))
    with caplog.at_level("INFO"):
        result = run.run()
    assert "going on after version 8: what clients had under way is lost" in caplog.text
    assert told == list(range(9, 25))
    assert result["rounds"] == 24
    assert max(v for k, v in result.items() if "acc" in k and isinstance(v, float)) > 0.6


@pytest.mark.parametrize("schedule", ["fedasync", "fedbuff"])
def test_a_simulation_that_goes_on_takes_up_what_was_under_way(tmp_path: Path, schedule: str) -> None:
    settings = {**SMALL, "schedule": schedule, "asynchrony": {"buffer": 2, "concurrency": 4}, "checkpoint_every": 4}
    config = VHL.model_validate({**settings, "rounds": 10, "eval_every": 10})
    made = devices({"count": 2, "profile": {"compute_factor": 7}}, {"profile": {"crash_rate": 0.2}})

    def on_progress(done: int, total: int, figures: Any) -> None:
        if done == 6:  # as a kill would leave it
            shutil.copytree(tmp_path / "whole", tmp_path / "killed")

    play = partial(Simulation, WORKLOAD, config, clients=8, seed=1, devices=made)
    expected = play(directory=tmp_path / "whole", on_progress=on_progress).run()
    tensors, meta = RunDirectory.open(tmp_path / "killed").checkpoints.load(4)
    begun = {round_index for _, round_index, *_ in meta["under_way"]}
    assert len(begun) > 1, "clients train from one version: this test would prove little"
    assert {name.split("/")[1] for name in tensors if name.startswith("seen/")} == {
        str(round_index) for round_index in begun
    }
    assert play(directory=tmp_path / "killed").run() == expected
    assert read_history(tmp_path / "killed", 10) == read_history(tmp_path / "whole", 10)
    ends = [RunDirectory.open(tmp_path / name).checkpoints.load(10) for name in ("whole", "killed")]
    assert ends[0][1] == ends[1][1]
    one, other = ({name: array.tobytes() for name, array in tensors.items()} for tensors, _ in ends)
    assert one == other


@pytest.mark.parametrize("method", ["scaffold", "fednova"])
def test_methods_of_whole_rounds_are_refused(tmp_path: Path, method: str) -> None:
    with pytest.raises(ConfigError, match="needs whole rounds"):
        simulated(tmp_path / "run", {"rounds": 1, "method": method, "schedule": "fedasync"}, devices())


def test_a_simulation_without_devices_cannot_tell_who_is_first(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="depends on the devices"):
        simulated(tmp_path / "run", {"rounds": 1, "schedule": "fedbuff"}, None)


def test_who_is_off_is_not_asked_while_others_are_on(tmp_path: Path) -> None:
    made = devices({"profile": {"availability": 0.3, "period_s": 1e6}})
    _, history, _ = simulated(tmp_path / "run", {"rounds": 6, "schedule": "fedbuff"}, made, clients=20)
    assert history[-1]["simulated_seconds"] < 1e4


def test_a_clock_of_participations_needs_cohorts() -> None:
    with pytest.raises(ValueError, match="only schedule 'sync' draws"):
        VHL.model_validate({"lr_clock": "participation", "schedule": "fedbuff"})
