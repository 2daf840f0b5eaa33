"""The size of a checkpoint does not grow with the rounds, and a run resumed from one equals the uninterrupted run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from farshore.core.seeds import Seed
from farshore.engines.federated.config import FederatedConfig
from farshore.engines.federated.local import Sgd
from farshore.engines.federated.supervised import Supervised
from farshore.engines.federated.workload import FederatedWorkload
from farshore.runs.directory import RunDirectory
from farshore.runs.history import read_history
from farshore.simulations.federated.simulation import Simulation

CLIENTS, ROUNDS = 40, 200


class Tiny(FederatedWorkload[FederatedConfig]):
    """A linear model with two outputs; each client has one sample."""

    name, summary, config = "tiny", "", FederatedConfig

    def task(self, config: FederatedConfig, seed: Seed, find: Any, population: int) -> Supervised:
        x = torch.linspace(-1, 1, population).reshape(-1, 1)
        y = (x[:, 0] > 0).long()
        parts = [np.array([row]) for row in range(population)]
        return Supervised(x, y, x, y, parts, seed, lambda: nn.Linear(1, 2), lambda _: Sgd(0.1))


def test_checkpoint_size_is_constant_and_resumed_run_has_the_same_history(tmp_path: Path) -> None:
    sizes: dict[int, int] = {}

    def on_progress(done: int, total: int, figures: Any) -> None:
        path = tmp_path / "whole" / "checkpoints" / f"step-{done:012d}.safetensors"
        if path.exists():
            sizes[done] = path.stat().st_size
        if done == 115:  # the directory as a kill would leave it
            shutil.copytree(tmp_path / "whole", tmp_path / "killed")

    config = FederatedConfig(rounds=ROUNDS, per_round=4, checkpoint_every=10, eval_every=50)
    Simulation(Tiny(), config, tmp_path / "whole", CLIENTS, seed=5, on_progress=on_progress).run()
    assert sizes.keys() == set(range(10, ROUNDS + 1, 10))
    # The header contains the step number and is padded to a multiple of eight bytes.
    assert max(sizes.values()) - min(sizes.values()) <= 8

    lines = (tmp_path / "killed" / "rounds.jsonl").read_bytes().splitlines()
    assert len(lines) == 115
    Simulation(Tiny(), config, tmp_path / "killed", CLIENTS, seed=5).run()
    uninterrupted, resumed = (RunDirectory.open(tmp_path / name) for name in ("whole", "killed"))
    assert read_history(resumed.path, ROUNDS) == read_history(uninterrupted.path, ROUNDS)
    state, other_state = (directory.checkpoints.load(ROUNDS)[0] for directory in (uninterrupted, resumed))
    assert {name: array.tobytes() for name, array in state.items()} == {n: a.tobytes() for n, a in other_state.items()}
