"""One rank of the tests of several ranks: a process that executes tasks from its standard input, over gloo.

python training_ranks.py RANK RANKS STORE
"""

from __future__ import annotations

import datetime
import hashlib
import json
import sys
import traceback
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from farshore.core.seeds import Seed
from farshore.engines.data_parallel.config import TrainingConfig
from farshore.engines.data_parallel.task import Loss, Score, TrainTask
from farshore.engines.data_parallel.training import Training
from farshore.engines.data_parallel.training_state import broadcast_state, load_training, shared_arrays, training_arrays

SEED = Seed(5)


class Branches(TrainTask[dict[str, Any]]):
    """A model with two branches of which a batch uses one, as a sampled sub-network does."""

    metrics = ("error",)
    score = Score("error", higher_is_better=False)

    def __init__(self, size: int, sampled: bool, errors: list[float]) -> None:
        torch.manual_seed(1)
        self.model = _Branches()
        self.find_unused_parameters = sampled
        self.size, self.sampled, self.errors = size, sampled, list(errors)
        self.memory = np.zeros(3)

    def steps_per_epoch(self, ranks: int) -> int:
        return 10

    def batch(self, index: int, rank: int, ranks: int) -> dict[str, Any]:
        # The samples of a step are the same for any number of ranks: each takes its part.
        generator = torch.Generator().manual_seed(index)
        x = torch.randn(self.size * ranks, 4, generator=generator)
        return {"x": x[rank * self.size : (rank + 1) * self.size], "branch": index // 2 % 2 if self.sampled else -1}

    def loss(self, model: nn.Module, batch: dict[str, Any]) -> Loss:
        outputs = model(batch["x"], batch["branch"])
        return Loss((outputs - batch["x"].sum(1, keepdim=True)).square().mean(), outputs=outputs, distribution="normal")

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return {"error": self.errors.pop(0)}

    def state(self) -> Mapping[str, Any]:
        return {"memory": self.memory}

    def load_state(self, arrays: Mapping[str, Any]) -> None:
        self.memory = arrays["memory"]


class _Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.branches = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.last = nn.Linear(4, 1)

    def forward(self, x: Tensor, branch: int) -> Tensor:
        x = self.first(x).tanh()
        chosen = [self.branches[branch]] if branch >= 0 else list(self.branches)
        return self.last(sum((each(x) for each in chosen), torch.zeros(())).tanh())


def make(ranks: int, size: int = 4, sampled: bool = False, errors: list[float] | None = None, **settings: Any) -> Any:
    config = TrainingConfig(**{"steps": 8, "lr": 0.1, "device": "cpu", **settings})
    rank = dist.get_rank() if ranks > 1 else 0
    return Training(config, Branches(size, sampled, errors or []), SEED, rank, ranks)


def digest(training: Training) -> str:
    hashed = hashlib.sha256()
    for name, array in sorted(shared_arrays(training).items()):
        hashed.update(name.encode() + np.ascontiguousarray(array).tobytes())
    return hashed.hexdigest()


def flat(training: Training) -> list[float]:
    return torch.cat([p.detach().reshape(-1) for p in training.model.parameters()]).tolist()


def train(steps: int = 4, alone: bool = False, scale: float = 0, **settings: Any) -> Any:
    """Train on all ranks, or on each rank as if it was the only one with the batches of all."""
    training = make(1 if alone else dist.get_world_size(), **settings)
    if scale:
        training.scaler.load_state_dict({**training.scaler.state_dict(), "scale": scale})
    load_training(training, {}, 0)
    training.wrap_ddp()
    for step in range(steps):
        training.step(step)
    adapter: Any = training.preconditioner
    return {
        "weights": flat(training),
        "digest": digest(training),
        "scale": training.scaler.get_scale(),
        "inverses": len(adapter.kfac.inverses.names()) if adapter else 0,
    }


def share(**settings: Any) -> Any:
    """Train on rank 1 alone, and give its state to the other ranks; then train on all ranks."""
    training = make(dist.get_world_size(), **settings)
    if dist.get_rank() == 1:
        for step in range(3):
            training.step(step)
        training.task.memory += 7
        if training.tracker is not None:
            training.tracker.add(0.25, 3)
    arrays = training_arrays(training) if dist.get_rank() == 1 else {}
    load_training(training, arrays, 3)
    broadcast_state(training, 1)
    shared = digest(training)
    training.wrap_ddp()
    training.step(3)
    return {"shared": shared, "after": digest(training), "names": sorted(shared_arrays(training))}


def score(errors: list[float], **settings: Any) -> Any:
    """Evaluate on rank 0 and share the score; returns when each rank would stop."""
    training = make(dist.get_world_size(), errors=errors, **settings)
    stopped = []
    for done in range(1, len(errors) + 1):
        if dist.get_rank() == 0:
            training.score(training.evaluate(), done)
        training.share_score()
        stopped.append(training.tracker.stops)
    return {"stopped": stopped, "best": training.tracker.best_step}


TASKS = {task.__name__: task for task in (train, share, score)}


def main() -> None:
    """Join the group and execute tasks, one line each."""
    rank, ranks, store = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=ranks, timeout=datetime.timedelta(seconds=60)
    )
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"result": TASKS[request["task"]](**request["settings"])}
        except Exception:
            answer = {"error": traceback.format_exc()}
        print("ANSWER" + json.dumps(answer), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
