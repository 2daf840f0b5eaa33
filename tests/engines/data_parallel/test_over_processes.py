"""Data-parallel training on a real server and real nodes: results, traffic, and lost and rejoining ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from farshore.core.seeds import Seed
from farshore.data.images import load_images
from farshore.engines.data_parallel.image_config import DataParallelConfig
from farshore.engines.data_parallel.image_task import ImageClassification
from farshore.engines.data_parallel.training import Training
from farshore.runs.directory import RunDirectory
from farshore.runs.model_states import load_state
from tests.conftest import children

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]

CONFIG = {"model": "mlp", "steps": 12, "batch": 16, "lr": 0.05, "checkpoint_every": 4, "transport": "star"}


def weights(directory: str) -> dict[str, Any]:
    return load_state(Path(directory) / "states" / "last.safetensors")[0]


@pytest.mark.parametrize("transport", ["star", "peers"])
def test_nodes_train_the_same_model_as_one_process_with_all_their_batches(cloud: Any, transport: str) -> None:
    cloud.join("a", "b")
    run = cloud.submit({**CONFIG, "transport": transport}, method="data_parallel", count=2)
    info = cloud.when(run, "finished", seconds=90)
    result = json.loads(info.result_json)
    assert result["ranks"] == 2
    # One process whose batch consists of both ranks' batches, in rank order.
    config = DataParallelConfig(**{**CONFIG, "batch": 32})
    seed = Seed(7)
    task = ImageClassification(config, load_images("digits", Path, seed.child("data")), seed)
    alone = Training(config, task, seed, 0, 1)
    for step in range(12):
        alone.step(step)
    found = weights(info.directory)
    for name, tensor in alone.model.state_dict().items():
        np.testing.assert_allclose(found[name], tensor.numpy(), rtol=0, atol=2e-6)
    assert result["accuracy"] == pytest.approx(alone.evaluate()["accuracy"], abs=0.01)
    rows = RunDirectory.open(Path(info.directory)).read_ledger().to_pylist()
    parameters = sum(p.numel() for p in alone.model.parameters())
    reduced = [r for r in rows if r["kind"] == "all_reduce" and r["dense_bytes"] > 16]
    # Two ranks: in a ring each sends all elements once; through the server, once up and once down.
    factor, ways = (1, {"peer"}) if transport == "peers" else (2, {"up", "down"})
    figures = 8 * 2 * 2 if transport == "peers" else 0  # the mean losses of two steps are in the same rows
    assert sum(r["dense_bytes"] for r in reduced) == pytest.approx(12 * 2 * factor * 4 * parameters, abs=figures)
    assert {r["direction"] for r in reduced} == ways
    assert {r["step"] for r in reduced} == set(range(12))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "transport"), [("data_parallel", "star"), ("dp_kfac", "star"), ("dp_kfac", "peers")]
)
def test_a_run_continues_without_a_lost_node_and_takes_it_back_when_it_rejoins(
    cloud: Any, method: str, transport: str
) -> None:
    cloud.join("a", "b", "c", "d")
    config = {**CONFIG, "steps": 400, "checkpoint_every": 10, "transport": transport}
    run = cloud.submit(config, method=method, count=4)
    cloud.when(run, "running", done=30, seconds=90)
    (program,) = [p for p in children(cloud.agents["b"].pid) if "node_process" in " ".join(p.cmdline())]
    program.kill()
    info = cloud.when(run, "finished", seconds=200)
    log = cloud.log(info)
    formed = [line.partition("run: ")[2].split() for line in log.splitlines() if " ranks from step " in line]
    assert "node b was lost: forming a new group of ranks" in log
    assert [line[0] for line in formed] == ["4", "3", "4"], log
    # From a checkpoint each time, never from step 0.
    assert all(int(line[4].rstrip(",")) % 10 == 0 for line in formed)
    assert int(formed[1][4].rstrip(",")) >= 20
    result = json.loads(info.result_json)
    assert (result["ranks"], result["steps"]) == (4, 400)
    assert result["accuracy"] > 0.9
    kinds = {row["kind"] for row in RunDirectory.open(Path(info.directory)).read_ledger().to_pylist()}
    assert {"all_reduce", "broadcast"} <= kinds
    # Owner exchange: all-to-all on gloo, whose reduce sends more than necessary; reduce through the server.
    exchanged = {"data_parallel": set(), "dp_kfac": {"all_to_all"} if transport == "peers" else {"reduce"}}
    assert kinds & {"reduce", "all_to_all"} == exchanged[method]


def test_the_best_state_is_kept_when_a_run_stops_early(cloud: Any) -> None:
    cloud.join("a", "b")
    config = {**CONFIG, "steps": 400, "optimizer": "adam", "lr": 0.003, "schedule": "constant", "ema": 0.5}
    config |= {"accumulate": 2, "eval_every": 5, "keep_best": True, "early_stop": 2, "checkpoint_every": 10}
    info = cloud.when(cloud.submit(config, method="data_parallel", count=2), "finished", seconds=120)
    result = json.loads(info.result_json)
    assert result["ranks"] == 2
    # Two evaluations after the best one, no score was better.
    assert result["steps"] == result["best_step"] + 10 < 400
    assert result["accuracy"] <= result["best_score"]
    best, metadata = load_state(Path(info.directory) / "states" / "best.safetensors")
    assert (int(metadata["step"]), float(metadata["score"])) == (result["best_step"], result["best_score"])
    seed, settings = Seed(7), DataParallelConfig(**config)
    task = ImageClassification(settings, load_images("digits", Path, seed.child("data")), seed)
    task.model.load_state_dict({name: torch.from_numpy(array) for name, array in best.items()})
    assert task.evaluate(task.model.eval())["accuracy"] == pytest.approx(result["best_score"])


ADAM = {"optimizer": "adamw", "lr": 0.002, "ema": 0.9, "accumulate": 2, "clip": 1.0, "precision": "fp16"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "settings"),
    [("dp_kfac", {}), ("data_parallel", {**ADAM, "eval_every": 20, "keep_best": True, "early_stop": 20})],
)
def test_a_run_resumed_after_a_server_crash_equals_an_uninterrupted_run(
    cloud: Any, method: str, settings: dict[str, Any]
) -> None:
    cloud.join("a", "b")
    config = {**CONFIG, "steps": 200, "checkpoint_every": 10, "schedule": "constant", **settings}
    run = cloud.submit(config, method=method, count=2)
    cloud.when(run, "running", done=30, seconds=90)
    cloud.server.kill()
    cloud.server.join()
    cloud.up()
    with cloud.admin() as admin:
        admin.resume(run)
    info = cloud.when(run, "finished", seconds=200)
    formed = [line for line in cloud.log(info).splitlines() if " ranks from step " in line]
    assert len(formed) == 2
    assert " from step 0," not in formed[1]
    again = cloud.when(cloud.submit(config, method=method, count=2), "finished", seconds=200)
    # Same seed and same batches: the same bits.
    expected, resumed = weights(again.directory), weights(info.directory)
    assert all(np.array_equal(expected[name], resumed[name]) for name in expected)
    one, other = (json.loads(found.result_json) for found in (again, info))
    assert {name: one.get(name) for name in ("steps", "accuracy", "best_step", "best_score")} == {
        name: other.get(name) for name in ("steps", "accuracy", "best_step", "best_score")
    }
