"""The example of docs/data-parallel.md is the one in examples/, and trains by every way to run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from farshore.runs.model_states import load_state
from farshore.simulations.in_process import InProcessRun

from .conftest import EXAMPLE

ROOT = EXAMPLE.parents[1]


def run(module: ModuleType, folder: Path, **settings: Any) -> dict[str, Any]:
    workload = module.WORKLOAD
    return InProcessRun(workload, workload.config(**settings), folder, ("a",)).run()


def test_the_page_shows_the_example_as_it_is() -> None:
    assert EXAMPLE.read_text().strip() in (ROOT / "docs" / "data-parallel.md").read_text()
    assert len(EXAMPLE.read_text().splitlines()) <= 80


def test_the_example_learns_its_wave(example: ModuleType, tmp_path: Path) -> None:
    before = run(example, tmp_path / "short", steps=1)
    assert before["error"] > 0.3
    result = run(example, tmp_path / "long")
    assert result["error"] < 0.1
    assert {"loss", "wave", "slope", "lr", "steps", "parameters"} <= result.keys()


def test_the_example_learns_faster_with_dp_kfac(example: ModuleType, tmp_path: Path) -> None:
    settings = {"optimizer": "sgd", "lr": 0.1, "steps": 100}
    options = {"fisher": "mc1", "factor_steps": 5, "inv_steps": 10}
    plain = run(example, tmp_path / "plain", **settings)
    kfac = run(example, tmp_path / "kfac", **settings, preconditioner="dp_kfac", preconditioning=options)
    assert kfac["loss"] < plain["loss"] / 2
    assert "nu" in kfac


def test_the_best_state_is_saved_beside_the_last(example: ModuleType, tmp_path: Path) -> None:
    result = run(example, tmp_path, steps=40, lr=0.3, schedule="constant", eval_every=5, keep_best=True)
    states = tmp_path / "states"
    best, metadata = load_state(states / "best.safetensors")
    last, _ = load_state(states / "last.safetensors")
    assert best.keys() == last.keys()
    assert float(metadata["score"]) == result["best_score"] <= result["error"]
    assert int(metadata["step"]) == result["best_step"] <= 40


@pytest.mark.slow
@pytest.mark.process
def test_two_ranks_of_torchrun_train_it(tmp_path: Path) -> None:
    (tmp_path / "train_task.py").write_text(EXAMPLE.read_text())
    (tmp_path / "pyproject.toml").write_text(
        '[project.entry-points."farshore.workloads"]\nwave = "train_task:WORKLOAD"\n'
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    settings = ["steps=30", "eval_every=10", "keep_best=true", "ema=0.9", "accumulate=2", "device=cpu"]
    pairs = [part for setting in settings for part in ("--set", setting)]
    done = subprocess.run(
        [*launch, "-m", "farshore.torchrun", "wave", *pairs, "--out", "out"],
        cwd=tmp_path,
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert lines[-1]["ended"]
    assert lines[-1]["steps"] == 30
    best, metadata = load_state(tmp_path / "out" / "best.safetensors")
    assert all(np.isfinite(array).all() for array in best.values())
    assert int(metadata["step"]) in (10, 20, 30)
