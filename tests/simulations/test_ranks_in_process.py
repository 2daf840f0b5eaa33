"""Ranks of ``torch.distributed`` as threads of one process: the bits of real processes, also after a node is killed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from farshore.core.errors import RunCancelledError
from farshore.core.transfer import Recorder, Transfer
from farshore.core.workloads import load
from farshore.engines.data_parallel.config import TrainingConfig
from farshore.engines.data_parallel.task import Loss, TrainTask
from farshore.engines.data_parallel.workload import TrainingWorkload
from farshore.runs.directory import RunDirectory
from farshore.runs.model_states import load_state
from farshore.simulations.in_process import InProcessRun

pytestmark = pytest.mark.timeout(240)

SETTINGS = {"model": "mlp", "steps": 20, "batch": 16, "lr": 0.05, "checkpoint_every": 4, "log_every": 5}
POWERSGD = {"compression": "powersgd", "powersgd_start": 3}
METHODS = [("data_parallel", {}), ("data_parallel", POWERSGD), ("dp_kfac", {})]
NODES = ("a", "b", "c")
#: Kinds of a channel's own frames, which in-memory channels do not need.
OVERHEAD = {"ack", "heartbeat", "hello", "bye", "skip", "retransmission"}


def weights(directory: Path) -> dict[str, Any]:
    return load_state(directory / "states" / "last.safetensors")[0]


def ranks(method: str, directory: Path, recorder: Recorder | None = None, **settings: Any) -> InProcessRun:
    workload = load(method)
    config = workload.config(**{**SETTINGS, **settings})
    return InProcessRun(workload, config, directory, NODES, seed=7, recorder=recorder)


class NoisyTask(TrainTask[tuple[Tensor, Tensor]]):
    """Draws from the global generator in every forward pass, and exchanges buffers there."""

    metrics = ("loss_at_zero",)

    def __init__(self, config: TrainingConfig) -> None:
        parts = nn.Linear(8, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 1)
        self.model = nn.Sequential(*parts)

    def steps_per_epoch(self, ranks: int) -> int:
        return 10

    def batch(self, index: int, rank: int, ranks: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(100 * index + rank)
        x = torch.randn(16, 8, generator=generator)
        return x, x.sum(1, keepdim=True)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Loss:
        return Loss(functional.mse_loss(model(batch[0]), batch[1]))

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return {"loss_at_zero": float(model(torch.zeros(1, 8)).square())}


class Noisy(TrainingWorkload[TrainingConfig]):
    name, summary = "noisy", "draws in every forward pass"

    def task(self, config: TrainingConfig, seed: Any, find: Any) -> NoisyTask:
        return NoisyTask(config)


def test_thread_ranks_that_draw_in_the_forward_pass_do_not_disturb_each_other(tmp_path: Path) -> None:
    def run(folder: str) -> Mapping[str, Any]:
        config = TrainingConfig(steps=12, lr=0.01, batch=16, transport="star", log_every=4, checkpoint_every=5)
        InProcessRun(Noisy(), config, tmp_path / folder, NODES, seed=7).run()
        return weights(tmp_path / folder)

    first = run("first")
    assert all(same(first, run(f"again-{repeat}")) for repeat in range(3))


def frame(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("node", "direction", "kind", "step", "micro", "payload_bytes", "frame_bytes"))


def same(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.process
@pytest.mark.parametrize(("method", "more"), METHODS, ids=["ddp", "powersgd", "kfac"])
def test_thread_ranks_have_the_bits_and_bytes_of_real_processes(
    cloud: Any, tmp_path: Path, method: str, more: dict[str, Any]
) -> None:
    cloud.join(*NODES)
    settings = {**SETTINGS, **more, "transport": "star"}
    info = cloud.when(cloud.submit(settings, method=method, count=3), "finished", seconds=120)
    rows: list[Transfer] = []
    result = ranks(method, tmp_path / "run", rows.append, **settings).run()
    assert same(weights(tmp_path / "run"), weights(Path(info.directory)))
    assert result == json.loads(info.result_json)
    real = RunDirectory.open(Path(info.directory)).read_ledger().to_pylist()
    own = [row for row in real if row["kind"] not in OVERHEAD]
    assert sorted(map(frame, map(asdict, rows))) == sorted(map(frame, own))


@pytest.mark.parametrize("method", ["data_parallel", "dp_kfac"])
def test_a_run_whose_node_is_killed_and_returns_has_the_bits_of_an_undisturbed_one(tmp_path: Path, method: str) -> None:
    ranks(method, tmp_path / "plain").run()
    # With fewer than three ranks the run waits, so that every step has three.
    rows: list[Transfer] = []
    run = ranks(method, tmp_path / "troubled", rows.append, least=3)
    killed: list[int] = []

    def on_progress(done: int, total: int, values: Mapping[str, Any]) -> None:
        if done == 10 and not killed:  # after all have saved step 8 and before any saves step 12
            killed.append(done)
            run.kill("b")

    run.on_progress = on_progress
    run.run()
    assert {row.attempt for row in rows if row.node == "b"} == {0, 1}
    assert same(weights(tmp_path / "plain"), weights(tmp_path / "troubled"))


def test_a_cancelled_run_of_ranks_ends_with_the_cancellation(tmp_path: Path) -> None:
    run = ranks("dp_kfac", tmp_path / "run", steps=500)
    run.on_progress = lambda done, total, values: run.cancelled.set()
    with pytest.raises(RunCancelledError):
        run.run()
    assert not dist.is_initialized()
