"""One rank of the DP-KFAC tests: a process that executes tasks from its standard input, over gloo.

python dp_kfac_ranks.py RANK RANKS STORE
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from farshore.algorithms.dp_kfac import DPKFAC
from farshore.algorithms.dp_kfac.state_dict import merge_shards
from farshore.models.cifar_resnet import CifarResNet
from farshore.models.mlp import perceptron

MODELS: dict[str, tuple[Any, tuple[int, ...], int]] = {
    "small": (lambda: perceptron((6, 5, 5, 4, 3)), (6,), 3),
    "two layers": (lambda: perceptron((6, 5, 3)), (6,), 3),
    "conv": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 4, 3, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(36, 3),
        ),
        (2, 8, 8),
        3,
    ),
    "resnet20": (lambda: CifarResNet(20), (3, 32, 32), 10),
}
GROUPS: dict[tuple[int, ...], Any] = {}


class Training:
    """A model, its preconditioner, and batches that depend on the step and, unless ``same``, on the rank."""

    def __init__(self, group: Any, model: str, ddp: bool, batch: int, same: bool, **settings: Any) -> None:
        make, self.shape, self.classes = MODELS[model]
        torch.manual_seed(0)
        self.model = make()
        self.group, self.batch, self.same = group, batch, same
        self.rank = dist.get_rank(group)
        self.accumulation = settings.get("accumulation_steps", 1)
        alone = dist.get_world_size(group) == 1
        self.base = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        settings = {"factor_steps": 1, "inv_steps": 1, **settings}
        if "bcast_dtype" in settings:
            settings["bcast_dtype"] = getattr(torch, settings["bcast_dtype"])
        self.kfac = DPKFAC(self.model, lr=self.base, process_group=group, **settings)
        self.wrapped: nn.Module = self.model
        if ddp and not alone:
            self.wrapped = DistributedDataParallel(self.model, process_group=group, broadcast_buffers=False)
            self.kfac.attach_ddp(self.wrapped)
        self.step_number = 0

    def data(self) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(1000 * self.step_number + (0 if self.same else self.rank))
        x = torch.randn(self.batch, *self.shape, generator=generator)
        y = (x.flatten(1)[:, : self.classes]).argmax(1)
        return x, y

    def step(self) -> float:
        x, y = self.data()
        self.base.zero_grad()
        total = 0.0
        parts = list(zip(x.chunk(self.accumulation), y.chunk(self.accumulation), strict=True))
        for index, (px, py) in enumerate(parts):
            last = index == len(parts) - 1
            no_sync = isinstance(self.wrapped, DistributedDataParallel) and not last
            with self.wrapped.no_sync() if no_sync else contextlib.nullcontext():
                logits = self.wrapped(px)
                if self.kfac.options.fisher == "mc1":
                    self.kfac.sample_fisher(logits)
                loss = functional.cross_entropy(logits, py) / self.accumulation
                loss.backward()
            total += float(loss)
            if not last:
                assert "gradients" not in self.kfac.comm_bytes() or self.step_number
        self.kfac.step()
        self.base.step()
        self.step_number += 1
        return total

    def summary(self, losses: list[float]) -> dict[str, Any]:
        flat = torch.cat([p.detach().reshape(-1) for p in self.model.parameters()])
        kfac = self.kfac
        return {
            "rank": self.rank,
            "losses": losses,
            "parameters": flat.tolist() if flat.numel() < 5000 else [],
            "digest": hashlib.sha256(flat.numpy().tobytes()).hexdigest(),
            "traffic": kfac.comm_bytes(),
            "memory": kfac.memory_usage(),
            "factors": sorted(kfac.factors.names()),
            "inverses": sorted(kfac.inverses.names()),
            "hooked": sorted(kfac.statistics.hooked),
            "owners": kfac.owners,
            "last_metrics": kfac.last_metrics,
            "counts": dict(kfac.counts),
        }


def group_of(ranks: tuple[int, ...]) -> Any:
    """Return the process group of some ranks; every rank must call it."""
    if ranks not in GROUPS:
        GROUPS[ranks] = dist.new_group(list(ranks))
    return GROUPS[ranks]


def train(ranks: int, steps: int = 5, **settings: Any) -> Any:
    """Train on the first ``ranks`` ranks."""
    group = group_of(tuple(range(ranks)))
    if dist.get_rank() >= ranks:
        return None
    training = Training(group, **{"model": "small", "ddp": False, "batch": 8, "same": False, **settings})
    return training.summary([training.step() for _ in range(steps)])


def train_spied(**settings: Any) -> Any:
    """Train and record every call of torch.distributed: name and number of elements."""
    seen: list[tuple[str, int]] = []
    with _spying(seen):
        result = train(**settings)
    return result and {**result, "seen": seen}


@contextlib.contextmanager
def _spying(seen: list[tuple[str, int]]) -> Iterator[None]:
    names = ("all_reduce", "reduce", "broadcast", "all_to_all_single", "isend", "irecv", "send", "recv", "all_gather")
    originals = {name: getattr(dist, name) for name in names}

    def spy(name: str) -> Any:
        def called(*args: Any, **kwargs: Any) -> Any:
            tensor = args[1] if name == "all_to_all_single" else args[0]
            seen.append((name, tensor.numel()))
            return originals[name](*args, **kwargs)

        return called

    for name in names:
        setattr(dist, name, spy(name))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)


def resume(ranks: int, saved_by: int, source: str, **settings: Any) -> Any:
    """Train 3 steps on ``saved_by`` ranks, save, and continue with 2 more steps on ``ranks`` ranks."""
    options = {"model": "small", "ddp": False, "batch": 8, "same": True, **settings}
    first, second = group_of(tuple(range(saved_by))), group_of(tuple(range(ranks)))
    state: dict[str, Any] | None = None
    weights: dict[str, Any] = {}
    if dist.get_rank() < saved_by:
        training = Training(first, **options)
        for _ in range(3):
            training.step()
        whole = training.kfac.consolidate(0)
        own = training.kfac.state_dict()
        folder = Path(sys.argv[3]).parent
        torch.save(
            {"kfac": own, "whole": whole, "model": training.model.state_dict(), "base": training.base.state_dict()},
            folder / f"part-{dist.get_rank()}.pt",
        )
    dist.barrier()
    if dist.get_rank() >= ranks:
        dist.barrier()
        return None
    folder = Path(sys.argv[3]).parent
    parts = [torch.load(folder / f"part-{r}.pt", weights_only=True) for r in range(saved_by)]
    state = parts[0]["whole"] if source == "consolidated" else merge_shards(part["kfac"] for part in parts)
    weights = parts[0]
    dist.barrier()
    training = Training(second, **options)
    training.model.load_state_dict(weights["model"])
    training.base.load_state_dict(weights["base"])
    training.kfac.load_state_dict(state)
    training.step_number = 3
    return training.summary([training.step() for _ in range(2)])


def reassign(alive: list[int], **settings: Any) -> Any:
    """Train 3 steps on 4 ranks, then continue with those in ``alive``."""
    everyone, remaining = group_of((0, 1, 2, 3)), group_of(tuple(alive))
    training = Training(everyone, **{"model": "small", "ddp": False, "batch": 8, "same": False, **settings})
    losses = [training.step() for _ in range(3)]
    if dist.get_rank() not in alive:
        return None
    before = dict(training.kfac.owners)
    training.kfac.reassign(alive, remaining)
    training.group, training.rank = remaining, dist.get_rank(remaining)
    losses += [training.step() for _ in range(4)]
    return {**training.summary(losses), "before": before}


def redistribute(saved_by: list[int], ranks: list[int], **settings: Any) -> Any:
    """Train 3 steps on some ranks; continue on others, each of which loads the shard that it saved, if any."""
    options = {"model": "small", "ddp": False, "batch": 8, "same": True, **settings}
    first, second = group_of(tuple(saved_by)), group_of(tuple(ranks))
    shard: dict[str, Any] = {"steps": 3, "inverse": settings.get("inverse", "eigen"), "layers": {}}
    model: dict[str, Any] = {}
    if dist.get_rank() in saved_by:
        training = Training(first, **options)
        for _ in range(3):
            training.step()
        model = {"model": training.model.state_dict(), "base": training.base.state_dict()}
        shard = training.kfac.state_dict()
    held = [model]
    dist.broadcast_object_list(held, saved_by[0])
    if dist.get_rank() not in ranks:
        return None
    training = Training(second, **options)
    training.model.load_state_dict(held[0]["model"])
    training.base.load_state_dict(held[0]["base"])
    training.kfac.load_sharded_state_dict(shard)
    training.step_number = 3
    before = {name: [t.tolist() for t in training.kfac.factors.get(name) or ()] for name in training.kfac.owners}
    result = training.summary([training.step() for _ in range(2)])
    return {**result, "before": before, "held": {n: len(p) for n, p in shard["layers"].items()}}


def factors(ranks: int, **settings: Any) -> Any:
    """Return the factors that this rank holds after one step."""
    group = group_of(tuple(range(ranks)))
    if dist.get_rank() >= ranks:
        return None
    training = Training(group, **{"model": "small", "ddp": False, "batch": 8, "same": False, **settings})
    training.step()
    kfac = training.kfac
    return {name: [f.tolist() for f in kfac.factors.get(name) or ()] for name in kfac.factors.names()}


TASKS = {task.__name__: task for task in (train, train_spied, resume, reassign, redistribute, factors)}


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
