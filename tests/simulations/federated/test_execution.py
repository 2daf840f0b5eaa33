"""Batched execution: the same bits for any number of workers, and a resumed run keeps the execution chosen before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from farshore.algorithms.vhl.workload import WORKLOAD
from farshore.core.errors import ConfigError
from farshore.core.seeds import Seed
from farshore.engines.federated import batched
from farshore.runs.directory import RunDirectory
from farshore.simulations.federated import simulation
from farshore.simulations.federated.execution import Execution, choose_execution
from farshore.simulations.federated.simulation import Simulation

pytest.importorskip("sklearn")
pytestmark = [pytest.mark.process, pytest.mark.timeout(180), pytest.mark.usefixtures("one_thread")]

CLIENTS, COHORT = 80, 70  # three chunks, the last one short


def config(execution: str, **settings_changes: Any) -> Any:
    settings: dict[str, Any] = {"rounds": 2, "per_round": COHORT, "local_epochs": 1, "lr": 0.1, "eval_every": 2}
    settings |= {"checkpoint_every": 1, "partition": {"kind": "lda", "alpha": 5, "min_size": 2}, "norm": "group"}
    settings |= {"virtual": {"enabled": False}, "method": "scaffold", "execution": execution, **settings_changes}
    return WORKLOAD.config.model_validate(settings)


def final_state(directory: Path) -> dict[str, Any]:
    return RunDirectory.open(directory).checkpoints.load(2)[0]


def initial() -> Any:
    flat = WORKLOAD.task(config("batched"), Seed(3), Path, CLIENTS).model()
    return {"floats": flat.floats.numpy()}


def test_batched_training_on_digits_equals_sequential_training() -> None:
    task = WORKLOAD.task(config("batched", method="fedavg", local_epochs=3), Seed(3), Path, CLIENTS)
    flat = task.model()
    method = task.method(flat)
    down = method.start(flat)
    works = [task.work(flat, client, 1) for client in range(8)]
    for update, work in zip(batched.local(flat, method, down, works), works, strict=True):
        expected = method.local(flat, down, work)
        assert (update.samples, update.steps) == (expected.samples, expected.steps)
        assert update.loss == pytest.approx(expected.loss, abs=1e-6)
        np.testing.assert_allclose(update.tensors["floats"], expected.tensors["floats"], rtol=0, atol=2e-6)


def test_batched_with_two_workers_equals_one_worker_and_approximates_sequential(tmp_path: Path) -> None:
    results = {}
    for name, execution, workers in (("one", "batched", 1), ("two", "batched", 2), ("alone", "sequential", 1)):
        results[name] = Simulation(WORKLOAD, config(execution), tmp_path / name, CLIENTS, 3, workers=workers).run()
    one, two, sequential = (final_state(tmp_path / name) for name in results)
    assert results["one"] == results["two"]
    assert [name for name in one if not np.array_equal(one[name], two[name])] == []
    # A ReLU whose input is close to 0 may take either branch and change one client's gradient by more than rounding.
    bounds = {"floats": 1e-4, "control": 1e-3, "integers": 0}
    assert [n for n in one if np.abs(one[n] - sequential[n]).max(initial=0) > bounds[n]] == []
    assert np.abs(sequential["floats"] - initial()["floats"]).max() > 5e-3
    assert any(not np.array_equal(one[name], sequential[name]) for name in one)  # a different computation
    recorded = {name: RunDirectory.open(tmp_path / name).info["execution"]["together"] for name in results}
    assert recorded == {"one": 32, "two": 32, "alone": 1}


def test_choice_of_auto_is_recorded_and_kept_when_the_run_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[Execution] = []

    def choose_other(*args: Any) -> Execution:
        execution = choose_execution(*args)
        assert execution.clients == 32
        assert execution.sequential_seconds > 0 < execution.batched_seconds
        assert (execution.together > 1) == (execution.batched_seconds < execution.sequential_seconds)
        # The opposite of what was measured, so that a second measurement would not choose it.
        chosen.append(Execution(1 if execution.together > 1 else 32, "reversed"))
        return chosen[0]

    class StoppedError(Exception):
        pass

    def stop(done: int, *_: Any) -> None:
        raise StoppedError

    monkeypatch.setattr(simulation, "choose_execution", choose_other)
    with pytest.raises(StoppedError):
        Simulation(WORKLOAD, config("auto"), tmp_path / "run", CLIENTS, 3, on_progress=stop).run()
    directory = RunDirectory.open(tmp_path / "run")
    together = chosen[0].together
    assert directory.info["execution"]["together"] == together
    assert "(reversed)" in directory.log.read_text()
    Simulation(WORKLOAD, config("auto"), tmp_path / "run", CLIENTS, 3).run()
    assert len(chosen) == 1
    same = "batched" if together > 1 else "sequential"
    monkeypatch.undo()
    Simulation(WORKLOAD, config(same), tmp_path / "same", CLIENTS, 3).run()
    resumed, expected = final_state(tmp_path / "run"), final_state(tmp_path / "same")
    assert [name for name in resumed if not np.array_equal(resumed[name], expected[name])] == []


@pytest.mark.parametrize(
    ("settings_changes", "why"),
    [({"norm": "batch"}, r"BatchNorm2d"), ({"virtual": {"enabled": True}}, "no loss per sample")],
)
def test_batched_is_refused_if_unsupported_and_auto_logs_the_reason(
    tmp_path: Path, settings_changes: dict[str, Any], why: str
) -> None:
    with pytest.raises(ConfigError, match=why):
        Simulation(WORKLOAD, config("batched", **settings_changes), tmp_path / "refused", CLIENTS, 3).run()
    Simulation(WORKLOAD, config("auto", rounds=1, per_round=3, **settings_changes), tmp_path / "auto", CLIENTS, 3).run()
    directory = RunDirectory.open(tmp_path / "auto")
    assert directory.info["execution"]["together"] == 1
    (line,) = [line for line in directory.log.read_text().splitlines() if line.startswith("execution: sequential")]
    assert why in line
