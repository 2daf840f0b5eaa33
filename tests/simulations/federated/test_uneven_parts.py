"""Clients with any number of samples, batches of any size and any layers: they train, or are left out by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from farshore.core.errors import RunFailedError
from farshore.core.seeds import Seed
from farshore.core.transfer import Transfer
from farshore.engines.federated.client_training import CannotTrain, attempt
from farshore.engines.federated.config import FederatedConfig
from farshore.engines.federated.local import Sgd
from farshore.engines.federated.messages import NO_SAMPLES
from farshore.engines.federated.supervised import Supervised
from farshore.engines.federated.workload import FederatedWorkload
from farshore.runs.directory import RunDirectory
from farshore.runs.model_states import load_state
from farshore.simulations.federated.simulation import Simulation
from farshore.simulations.in_process import InProcessRun

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("one_thread")]

#: Samples of each client: none, one, a remainder of one with batches of 4 and 8, and more.
SIZES = (0, 1, 2, 9, 33, 5)
BUILDS: dict[str, Any] = {
    "linear": lambda: nn.Linear(4, 2),
    "batch norm": lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)),
    "batch norm of maps": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2)
    ),
    "group norm": lambda: nn.Sequential(nn.Linear(4, 6), nn.GroupNorm(2, 6), nn.ReLU(), nn.Linear(6, 2)),
}


class Uneven(FederatedWorkload[FederatedConfig]):
    """A classification task whose clients have ``sizes`` samples."""

    name, summary, config = "uneven", "", FederatedConfig

    def __init__(self, build: Any, batch: int, sizes: tuple[int, ...] = SIZES) -> None:
        self.build, self.batch, self.sizes = build, batch, sizes

    def task(self, config: FederatedConfig, seed: Seed, find: Any, population: int) -> Supervised:
        x = torch.randn(sum(self.sizes), 4, generator=torch.Generator().manual_seed(3))
        y = (x[:, 0] > 0).long()
        parts = np.split(np.arange(len(x)), np.cumsum(self.sizes)[:-1])
        return Supervised(x, y, x, y, parts, seed, self.build, lambda _: Sgd(0.1), batch=self.batch)


def run(path: Path, workload: Uneven, rounds: int = 2, **settings: Any) -> dict[str, Any]:
    count = len(workload.sizes)
    config = FederatedConfig(rounds=rounds, per_round=count, checkpoint_every=1, **settings)
    Simulation(workload, config, path, count, seed=5).run()
    result = RunDirectory.open(path).result
    assert result is not None
    return result


def strict_json(path: Path) -> list[Any]:
    """Read a file of JSON values, which must not hold what only Python's json module reads."""

    def fail(text: str) -> None:
        raise AssertionError(f"{path.name} holds {text}")

    texts = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    return [json.loads(text, parse_constant=fail) for text in texts]


@pytest.mark.parametrize("batch", [1, 4, 8, 100])
@pytest.mark.parametrize("build", BUILDS)
def test_every_client_trains_or_is_left_out_by_name(tmp_path: Path, build: str, batch: int) -> None:
    result = run(tmp_path / "run", Uneven(BUILDS[build], batch))
    first = strict_json(tmp_path / "run" / "rounds.jsonl")[0]
    assert first["missing"].pop("0") == f"did not train: {NO_SAMPLES}"
    # Batch norm cannot normalize a single value per channel, so the client with one sample is left out, and only it;
    # with batches of one, also those with more than the two samples that make the last batch.
    alone = {"1"} if batch > 1 else {"1", "3", "4", "5"}
    assert first["missing"].keys() == (alone if build == "batch norm" else set())
    for why in first["missing"].values():
        assert why.startswith("did not train: ValueError: Expected more than 1 value per channel")
    assert result["left_out"][f"did not train: {NO_SAMPLES}"] == "client 0 in 2 rounds"
    assert "client 0 left out: did not train: it has no training samples" in (tmp_path / "run/log.txt").read_text()


@pytest.mark.parametrize("build", ["linear", "batch norm"])
def test_real_clients_are_left_out_as_simulated_ones_are(tmp_path: Path, build: str) -> None:
    workload, rows = Uneven(BUILDS[build], 4), list[Transfer]()
    run(tmp_path / "simulated", workload)
    config = FederatedConfig(rounds=2, per_round=len(SIZES), checkpoint_every=1)
    nodes = [f"client-{i}" for i in range(len(SIZES))]
    InProcessRun(workload, config, tmp_path / "real", nodes, seed=5, recorder=rows.append).run()
    real, simulated = (strict_json(tmp_path / name / "rounds.jsonl") for name in ("real", "simulated"))
    assert [entry["missing"] for entry in real] == [entry["missing"] for entry in simulated]
    assert [entry["train_loss"] for entry in real] == [entry["train_loss"] for entry in simulated]
    states = [load_state(tmp_path / name / "states" / "last.safetensors")[0] for name in ("real", "simulated")]
    assert all(np.array_equal(states[0][name], states[1][name]) for name in states[0])
    names = ("node", "kind", "round", "frame_bytes")
    ledger = RunDirectory.open(tmp_path / "simulated").read_ledger().select(names).to_pylist()
    frames = sorted(tuple(row.values()) for row in ledger if row["kind"] == "update")
    assert frames == sorted((r.node, r.kind, r.round, r.frame_bytes) for r in rows if r.kind == "update")


def test_a_batched_simulation_leaves_out_the_same_clients(tmp_path: Path) -> None:
    workload = Uneven(BUILDS["linear"], 4)
    config = FederatedConfig(rounds=1, per_round=len(SIZES), execution="batched")
    Simulation(workload, config, tmp_path / "run", len(SIZES), seed=5).run()
    (entry,) = strict_json(tmp_path / "run" / "rounds.jsonl")
    assert entry["missing"] == {"0": f"did not train: {NO_SAMPLES}"}


def test_a_run_in_which_nobody_can_train_fails_with_the_reason_at_once(tmp_path: Path) -> None:
    with pytest.raises(RunFailedError, match=r"no round has changed the model \(2 clients.*no training samples"):
        run(tmp_path / "run", Uneven(BUILDS["linear"], 4, (0, 0)), rounds=1000)
    assert len(strict_json(tmp_path / "run" / "rounds.jsonl")) == 1
    assert RunDirectory.open(tmp_path / "run").result is None


def test_a_run_whose_rounds_never_had_enough_replies_is_no_success(tmp_path: Path) -> None:
    with pytest.raises(RunFailedError, match=r"no round has changed the model \(client 0"):
        run(tmp_path / "run", Uneven(BUILDS["linear"], 4, (0, 7)), least=2)


def test_an_asynchronous_run_in_which_nobody_can_train_fails_with_the_reason(tmp_path: Path) -> None:
    workload = Uneven(BUILDS["linear"], 4, (0, 0))
    config = FederatedConfig(rounds=5, per_round=2, schedule="fedbuff")
    with pytest.raises(RunFailedError, match=r"no clients remain that can reply; 2 clients.*no training samples"):
        InProcessRun(workload, config, tmp_path / "run", ("a", "b"), seed=5).run()


def test_errors_of_the_program_are_not_the_clients() -> None:
    assert isinstance(attempt(lambda: int("x")), CannotTrain)
    with pytest.raises(AttributeError):
        attempt(lambda: None.missing)  # type: ignore[attr-defined]


def test_files_that_say_json_hold_json_after_divergence(tmp_path: Path) -> None:
    workload = Uneven(BUILDS["linear"], 4)
    workload.task = lambda *a: _diverging(Uneven(BUILDS["linear"], 4).task(*a))  # type: ignore[method-assign]
    with pytest.raises(RunFailedError, match="no round has changed"):
        run(tmp_path / "run", workload)
    found = [path for path in (tmp_path / "run").iterdir() if path.suffix in (".json", ".jsonl")]
    assert {"rounds.jsonl", "metrics.jsonl", "run.json"} <= {path.name for path in found}
    for path in found:
        strict_json(path)


def _diverging(task: Supervised) -> Supervised:
    task.sgd = lambda _: Sgd(1e38)
    return task
