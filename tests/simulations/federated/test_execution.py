"""Batched simulations have the same bits for any number of workers; what was chosen once holds when a run goes on."""

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
from farshore.simulations.federated.execution import Execution, choose
from farshore.simulations.federated.simulation import Simulation

pytest.importorskip("sklearn")
pytestmark = [pytest.mark.process, pytest.mark.timeout(180), pytest.mark.usefixtures("one_thread")]

CLIENTS, COHORT = 80, 70  # three chunks, the last one short


def config(execution: str, **more: Any) -> Any:
    settings: dict[str, Any] = {"rounds": 2, "per_round": COHORT, "local_epochs": 1, "lr": 0.1, "eval_every": 2}
    settings |= {"checkpoint_every": 1, "partition": {"kind": "lda", "alpha": 5, "min_size": 2}, "norm": "group"}
    settings |= {"virtual": {"enabled": False}, "method": "scaffold", "execution": execution, **more}
    return WORKLOAD.config.model_validate(settings)


def last(directory: Path) -> dict[str, Any]:
    return RunDirectory.open(directory).checkpoints.load(2)[0]


def initial() -> Any:
    flat = WORKLOAD.task(config("batched"), Seed(3), Path, CLIENTS).model()
    return {"floats": flat.floats.numpy()}


def test_clients_of_the_digits_come_to_the_same_weights_at_once() -> None:
    task = WORKLOAD.task(config("batched", method="fedavg", local_epochs=3), Seed(3), Path, CLIENTS)
    flat = task.model()
    method = task.method(flat)
    down = method.start(flat)
    works = [task.work(flat, client, 1) for client in range(8)]
    for update, work in zip(batched.local(flat, method, down, works), works, strict=True):
        right = method.local(flat, down, work)
        assert (update.samples, update.steps) == (right.samples, right.steps)
        assert update.loss == pytest.approx(right.loss, abs=1e-6)
        np.testing.assert_allclose(update.tensors["floats"], right.tensors["floats"], rtol=0, atol=2e-6)


def test_two_workers_give_the_bits_of_one_and_nearly_those_of_one_client_after_another(tmp_path: Path) -> None:
    results = {}
    for name, execution, workers in (("one", "batched", 1), ("two", "batched", 2), ("alone", "sequential", 1)):
        results[name] = Simulation(WORKLOAD, config(execution), tmp_path / name, CLIENTS, 3, workers=workers).run()
    one, two, alone = (last(tmp_path / name) for name in results)
    assert results["one"] == results["two"]
    assert [name for name in one if not np.array_equal(one[name], two[name])] == []
    # A ReLU whose input is all but 0 may fall to either side and turn one client's gradient by more than rounding.
    bounds = {"floats": 1e-4, "control": 1e-3, "integers": 0}
    assert [n for n in one if np.abs(one[n] - alone[n]).max(initial=0) > bounds[n]] == []
    assert np.abs(alone["floats"] - initial()["floats"]).max() > 5e-3
    assert any(not np.array_equal(one[name], alone[name]) for name in one)  # it was another computation
    recorded = {name: RunDirectory.open(tmp_path / name).info["execution"]["together"] for name in results}
    assert recorded == {"one": 32, "two": 32, "alone": 1}


def test_what_auto_chose_is_written_down_and_holds_when_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[Execution] = []

    def noted(*given: Any) -> Execution:
        found = choose(*given)
        assert found.clients == 32
        assert found.sequential_seconds > 0 < found.batched_seconds
        assert (found.together > 1) == (found.batched_seconds < found.sequential_seconds)
        # The other one, which nothing here would choose again.
        chosen.append(Execution(1 if found.together > 1 else 32, "turned round"))
        return chosen[0]

    class StoppedError(Exception):
        pass

    def stop(done: int, *_: Any) -> None:
        raise StoppedError

    monkeypatch.setattr(simulation, "choose", noted)
    with pytest.raises(StoppedError):
        Simulation(WORKLOAD, config("auto"), tmp_path / "run", CLIENTS, 3, on_progress=stop).run()
    directory = RunDirectory.open(tmp_path / "run")
    together = chosen[0].together
    assert directory.info["execution"]["together"] == together
    assert "(turned round)" in directory.log.read_text()
    Simulation(WORKLOAD, config("auto"), tmp_path / "run", CLIENTS, 3).run()
    assert len(chosen) == 1
    same = "batched" if together > 1 else "sequential"
    monkeypatch.undo()
    Simulation(WORKLOAD, config(same), tmp_path / "same", CLIENTS, 3).run()
    ours, theirs = last(tmp_path / "run"), last(tmp_path / "same")
    assert [name for name in ours if not np.array_equal(ours[name], theirs[name])] == []


@pytest.mark.parametrize(
    ("more", "why"),
    [({"norm": "batch"}, r"BatchNorm2d"), ({"virtual": {"enabled": True}}, "no loss per sample")],
)
def test_batched_is_refused_where_it_cannot_be_and_auto_says_why_not(
    tmp_path: Path, more: dict[str, Any], why: str
) -> None:
    with pytest.raises(ConfigError, match=why):
        Simulation(WORKLOAD, config("batched", **more), tmp_path / "refused", CLIENTS, 3).run()
    Simulation(WORKLOAD, config("auto", rounds=1, per_round=3, **more), tmp_path / "auto", CLIENTS, 3).run()
    directory = RunDirectory.open(tmp_path / "auto")
    assert directory.info["execution"]["together"] == 1
    (line,) = [line for line in directory.log.read_text().splitlines() if line.startswith("execution: sequential")]
    assert why in line
