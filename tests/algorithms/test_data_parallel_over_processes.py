"""Data-parallel training on a real server and real nodes: ranks, and what becomes of them when one is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from farshore.algorithms.data_parallel.config import DataParallel
from farshore.algorithms.data_parallel.training import Training
from farshore.core.seeds import Seed
from farshore.data.images import load_images
from farshore.runs.directory import RunDirectory
from farshore.runs.model_states import load_state
from tests.conftest import children

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]

CONFIG = {"model": "mlp", "steps": 12, "batch": 16, "lr": 0.05, "checkpoint_every": 4, "transport": "star"}


def weights(directory: str) -> dict[str, Any]:
    return load_state(Path(directory) / "states" / "last.safetensors")[0]


@pytest.mark.parametrize("transport", ["star", "peers"])
def test_nodes_train_what_one_process_trains_on_all_their_batches(cloud: Any, transport: str) -> None:
    cloud.join("a", "b")
    run = cloud.submit({**CONFIG, "transport": transport}, method="data_parallel", count=2)
    info = cloud.when(run, "finished", seconds=90)
    result = json.loads(info.result_json)
    assert result["ranks"] == 2
    # One process whose batch is both ranks' batches, in the order of ranks.
    config = DataParallel(**{**CONFIG, "batch": 32})
    seed = Seed(7)
    alone = Training(config, load_images("digits", Path, seed.child("data")), seed, 0, 1)
    for step in range(12):
        alone.step(step)
    found = weights(info.directory)
    for name, tensor in alone.model.state_dict().items():
        np.testing.assert_allclose(found[name], tensor.numpy(), rtol=0, atol=2e-6)
    assert result["accuracy"] == pytest.approx(alone.test()["accuracy"], abs=0.01)
    rows = RunDirectory.open(Path(info.directory)).read_ledger().to_pylist()
    numbers = sum(p.numel() for p in alone.model.parameters())
    reduced = [r for r in rows if r["kind"] == "all_reduce" and r["dense_bytes"] > 16]
    # Two ranks: around a ring each sends all numbers once; through the server, once up and once down.
    factor, ways = (1, {"peer"}) if transport == "peers" else (2, {"up", "down"})
    figures = 8 * 2 * 2 if transport == "peers" else 0  # the means of two losses are in the same rows
    assert sum(r["dense_bytes"] for r in reduced) == pytest.approx(12 * 2 * factor * 4 * numbers, abs=figures)
    assert {r["direction"] for r in reduced} == ways
    assert {r["step"] for r in reduced} == set(range(12))


def test_a_lost_node_is_done_without_and_one_that_comes_back_is_a_rank_again(cloud: Any, until: Any) -> None:
    cloud.join("a", "b", "c")
    run = cloud.submit({**CONFIG, "steps": 400, "checkpoint_every": 10}, method="data_parallel", count=3)
    cloud.when(run, "running", done=30, seconds=90)
    (program,) = [p for p in children(cloud.agents["b"].pid) if "node_process" in " ".join(p.cmdline())]
    program.kill()
    info = cloud.when(run, "finished", seconds=100)
    log = cloud.log(info)
    formed = [line.partition(": ")[2] for line in log.splitlines() if " ranks from step " in line]
    assert "node b was lost: the ranks are formed anew" in log
    assert [line.split()[0] for line in formed] == ["3", "2", "3"], formed
    assert json.loads(info.result_json)["ranks"] == 3
