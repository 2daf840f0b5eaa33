"""A checkpoint costs the same after many rounds as after few, and a run that lost its later rounds goes on from it."""

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
    """Two weights, a client's row each."""

    name, summary, config = "tiny", "", FederatedConfig

    def task(self, config: FederatedConfig, seed: Seed, find: Any, population: int) -> Supervised:
        x = torch.linspace(-1, 1, population).reshape(-1, 1)
        y = (x[:, 0] > 0).long()
        parts = [np.array([row]) for row in range(population)]
        return Supervised(x, y, x, y, parts, seed, lambda: nn.Linear(1, 2), lambda _: Sgd(0.1))


def test_a_checkpoint_has_the_same_size_at_every_round_and_a_resumed_run_the_same_history(tmp_path: Path) -> None:
    sizes: dict[int, int] = {}

    def on_progress(done: int, total: int, figures: Any) -> None:
        path = tmp_path / "whole" / "checkpoints" / f"step-{done:012d}.safetensors"
        if path.exists():
            sizes[done] = path.stat().st_size
        if done == 115:  # as a kill would leave it
            shutil.copytree(tmp_path / "whole", tmp_path / "killed")

    config = FederatedConfig(rounds=ROUNDS, per_round=4, checkpoint_every=10, eval_every=50)
    Simulation(Tiny(), config, tmp_path / "whole", CLIENTS, seed=5, on_progress=on_progress).run()
    assert sizes.keys() == set(range(10, ROUNDS + 1, 10))
    # A header is padded to eight bytes, and names the step.
    assert max(sizes.values()) - min(sizes.values()) <= 8

    lines = (tmp_path / "killed" / "rounds.jsonl").read_bytes().splitlines()
    assert len(lines) == 115
    Simulation(Tiny(), config, tmp_path / "killed", CLIENTS, seed=5).run()
    whole, again = (RunDirectory.open(tmp_path / name) for name in ("whole", "killed"))
    assert read_history(again.path, ROUNDS) == read_history(whole.path, ROUNDS)
    one, two = (made.checkpoints.load(ROUNDS)[0] for made in (whole, again))
    assert {name: array.tobytes() for name, array in one.items()} == {n: a.tobytes() for n, a in two.items()}
