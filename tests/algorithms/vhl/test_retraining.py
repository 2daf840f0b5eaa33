"""Server retraining on virtual images after each aggregation: its steps, and reproducibility of the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from farshore.algorithms.vhl.task import VHLTask
from farshore.algorithms.vhl.workload import WORKLOAD
from farshore.core.seeds import Seed
from farshore.runs.checkpoints import CheckpointStore
from farshore.simulations.federated.simulation import Simulation
from farshore.simulations.in_process import InProcessRun

pytest.importorskip("sklearn")

pytestmark = pytest.mark.usefixtures("one_thread")

CLIENTS, SEED, STEPS = 3, 3, 5
SMALL: dict[str, Any] = {"rounds": 2, "per_round": 2, "local_epochs": 1, "batch": 128, "eval_every": 3, "lr": 0.05}
SMALL |= {"partition": {"kind": "iid"}, "checkpoint_every": 1, "momentum": 0.5}


def config(steps: int = STEPS, **more: Any) -> Any:
    virtual = {"per_class": 6, "batch": 20, "server_retrain": steps, **more.pop("virtual", {})}
    return WORKLOAD.config.model_validate({**SMALL, **more, "virtual": virtual})


def task(settings: Any) -> VHLTask:
    made = WORKLOAD.task(settings, Seed(SEED), Path, CLIENTS)
    assert isinstance(made, VHLTask)
    return made


def test_retraining_is_pytorchs_sgd_on_virtual_images() -> None:
    problem = task(config(method="fedprox", mu=10.0))  # the proximal term does not apply on the server
    flat, twin = problem.model(), problem.model().module
    state = problem.method(flat).start(flat)
    untouched = {name: array.copy() for name, array in state.items()}
    refined = problem.refine(flat, state, 2)
    assert all(np.array_equal(state[name], untouched[name]) for name in state)
    batches = problem._virtual_batches(Seed(SEED).child("round", 2, "server"))
    lr = 0.05 * 0.992
    optimizer = torch.optim.SGD(twin.parameters(), lr, momentum=0.5, weight_decay=1e-4)
    for _ in range(STEPS):
        x, y = next(batches)
        optimizer.zero_grad()
        F.cross_entropy(twin(x)[0], y + problem.classes).backward()
        optimizer.step()
    expected = torch.cat([p.detach().reshape(-1) for p in twin.parameters()])
    p = flat.layout.trainable
    assert np.allclose(refined["floats"][:p], expected.numpy(), atol=1e-6)
    # Running statistics remain those of natural images.
    assert np.array_equal(refined["floats"][p:], state["floats"][p:])
    assert np.array_equal(refined["integers"], state["integers"])
    assert len(state["floats"]) > p


def test_without_steps_the_state_is_returned_unchanged() -> None:
    problem = task(config(0))
    flat = problem.model()
    state = problem.method(flat).start(flat)
    assert problem.refine(flat, state, 1) is state


def test_retraining_lowers_the_virtual_loss_and_depends_on_the_round() -> None:
    problem = task(config(30))
    flat = problem.model()
    state = problem.method(flat).start(flat)
    first, again, second = (problem.refine(flat, state, number) for number in (1, 1, 2))
    assert np.array_equal(first["floats"], again["floats"])
    assert not np.array_equal(first["floats"], second["floats"])

    def loss(of: Any) -> float:
        flat.load(of["floats"], of["integers"])
        with torch.no_grad():
            logits = flat.module(problem._prepare_virtual(problem.virtual_data.images))[0]
        return float(F.cross_entropy(logits, problem.virtual_data.labels + problem.classes))

    assert loss(first) < 0.8 * loss(state)


@pytest.mark.parametrize("virtual", [{"enabled": False}, {"gaussian_anchors": True}], ids=str)
def test_retraining_needs_virtual_images(virtual: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="server_retrain needs virtual images"):
        config(virtual=virtual)


@pytest.mark.parametrize("method", ["fedavg", "scaffold"])
def test_nodes_simulation_and_resumed_run_give_the_same_bits(tmp_path: Path, method: str) -> None:
    more: dict[str, Any] = {"method": method, "downlink": {"encoding": "fp16"}}
    names = [str(i) for i in range(CLIENTS)]
    InProcessRun(WORKLOAD, config(**more), tmp_path / "nodes", names, seed=SEED).run()
    Simulation(WORKLOAD, config(**more), tmp_path / "simulated", CLIENTS, seed=SEED).run()
    Simulation(WORKLOAD, config(0, **more), tmp_path / "plain", CLIENTS, seed=SEED).run()
    InProcessRun(WORKLOAD, config(**more, rounds=1), tmp_path / "resumed", names, seed=SEED).run()
    InProcessRun(WORKLOAD, config(**more), tmp_path / "resumed", names, seed=SEED).run()
    nodes, resumed = (CheckpointStore(tmp_path / name / "server").load(2)[0] for name in ("nodes", "resumed"))
    simulated, plain = (CheckpointStore(tmp_path / name / "checkpoints").load(2)[0] for name in ("simulated", "plain"))
    for other in (simulated, resumed):
        assert [n for n in nodes if not np.array_equal(nodes[n], other[n])] == []
    assert not np.array_equal(nodes["floats"], plain["floats"])


@pytest.mark.parametrize("schedule", ["fedasync", "fedbuff"])
def test_asynchronous_schedules_retrain_every_version(tmp_path: Path, schedule: str, monkeypatch: Any) -> None:
    seen: list[int] = []
    refine = VHLTask.refine

    def counted(self: VHLTask, flat: Any, state: Any, number: int) -> Any:
        seen.append(number)
        return refine(self, flat, state, number)

    monkeypatch.setattr(VHLTask, "refine", counted)
    settings = config(schedule=schedule, per_round=1)
    InProcessRun(WORKLOAD, settings, tmp_path, [str(i) for i in range(CLIENTS)], seed=SEED).run()
    assert seen == [1, 2]
