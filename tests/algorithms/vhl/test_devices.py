"""VHL computes on the chosen device: losses with all terms, retraining on the server, and scores."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from farshore.algorithms.vhl.task import VHLTask
from farshore.algorithms.vhl.workload import WORKLOAD
from farshore.core.seeds import Seed
from farshore.engines.federated.compute import resident_model
from farshore.engines.federated.methods import FLOATS
from farshore.runs.directory import RunDirectory
from farshore.simulations.federated.simulation import Simulation

from ...engines.federated.fake_accelerator import DEVICE, fake_accelerator

pytest.importorskip("sklearn")
pytestmark = pytest.mark.usefixtures("one_thread")

SMALL: dict[str, Any] = {"rounds": 1, "per_round": 2, "local_epochs": 1, "batch": 256, "partition": {"kind": "iid"}}
CASES: dict[str, dict[str, Any]] = {
    "images": {},
    "split statistics": {"virtual": {"bn": "split"}},
    "all terms": {"virtual": {"domain_weight": 0.1, "feature_map": "orthogonal", "detach": False}},
    "anchors": {"virtual": {"gaussian_anchors": True}},
    "patch": {"virtual": {"label_style": "patch", "shuffle_labels": True}},
    "alone": {"virtual": {"enabled": False}},
    "scaffold": {"method": "scaffold", "scaffold_option": 1},
    "kept momentum": {"momentum": 0.9, "client_momentum": "keep"},
}


def task(**changes: Any) -> VHLTask:
    virtual = {"per_class": 4, "batch": 16, **changes.pop("virtual", {})}
    settings = WORKLOAD.config.model_validate({**SMALL, **changes, "virtual": virtual})
    made = WORKLOAD.task(settings, Seed(3), Path, 3)  # type: ignore[arg-type]
    assert isinstance(made, VHLTask)
    return made


@pytest.fixture
def scalars(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers of tensors without data."""
    monkeypatch.setattr(torch.Tensor, "__int__", lambda self: 0)
    monkeypatch.setattr(torch.Tensor, "__float__", lambda self: 0.0)


@pytest.mark.parametrize("case", CASES)
def test_a_client_trains_on_the_device(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    problem = task(**CASES[case])
    method, flat = problem.method(problem.model()), problem.model()
    down = method.sent(method.start(flat))
    if problem.recipe is not None:
        assert len(problem.virtual_data.images) == 40
    monkeypatch.setattr(problem, "model", lambda: flat)
    seen: set[torch.device] = set()
    work = problem.work(flat, 0, 1)
    with fake_accelerator(monkeypatch):
        flat = resident_model(problem, problem._config)
        flat.module.register_forward_hook(lambda module, given, got: seen.update(each.device for each in got))
        monkeypatch.setattr(problem, "_batches", lambda *_: iter(work.batches))
        on_device = problem.work(flat, 0, 1)
        update = method.local(flat, down, on_device)
    assert seen == {DEVICE}
    assert update.tensors[FLOATS].shape == down[FLOATS].shape
    assert update.steps == len(work.batches)
    assert update.metrics.keys() == set(problem.reports)


def test_the_server_retrains_and_scores_on_the_device(monkeypatch: pytest.MonkeyPatch, scalars: None) -> None:
    problem = task(virtual={"server_retrain": 2})
    flat = problem.model()
    state, batches = problem.method(flat).start(flat), list(islice(problem._virtual_batches(Seed(1)), 2))
    assert len(problem.test_parts) == 3
    monkeypatch.setattr(problem, "model", lambda: flat)
    seen = []
    with fake_accelerator(monkeypatch):
        flat = resident_model(problem, problem._config)
        flat.module.register_forward_hook(lambda module, given, got: seen.append(given[0].device))
        monkeypatch.setattr(problem, "_virtual_batches", lambda seed: iter(batches))
        refined = problem.refine(flat, state, 1)
        scores = problem.evaluate(flat, state)
        client_scores = problem.client_accuracy(flat, state)
    assert set(seen) == {DEVICE}
    assert refined[FLOATS].shape == state[FLOATS].shape
    assert scores.keys() == {"acc", "acc_nat", "test_loss", "virtual_acc"}
    assert client_scores.shape == (3,)


def simulated(path: Path, **changes: Any) -> dict[str, np.ndarray[Any, Any]]:
    settings = WORKLOAD.config.model_validate(
        {**SMALL, "rounds": 2, "lr": 0.1, "virtual": {"per_class": 4, "batch": 16}, **changes}
    )
    Simulation(WORKLOAD, settings, path, 3, 1).run()
    state: dict[str, Any] = RunDirectory.open(path).checkpoints.load(2)[0]
    return state


def test_the_default_device_without_an_accelerator_has_the_bits_of_the_cpu(tmp_path: Path) -> None:
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("this machine has an accelerator")
    auto, cpu = simulated(tmp_path / "auto"), simulated(tmp_path / "cpu", device="cpu")
    assert all(np.array_equal(auto[name], cpu[name]) for name in cpu)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_to_similar_weights(tmp_path: Path, precision: str) -> None:
    full, half = simulated(tmp_path / "fp32"), simulated(tmp_path / precision, precision=precision)
    start = task().method(task().model()).start(task().model())[FLOATS]
    assert half[FLOATS].dtype == np.float32
    difference = np.linalg.norm(half[FLOATS] - full[FLOATS])
    assert 0 < difference < 0.2 * np.linalg.norm(full[FLOATS] - start)
