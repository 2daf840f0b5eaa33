"""Train a sequence of jobs on four gloo ranks, for ``dp_kfac_convergence.py``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from _gloo_ranks import RANKS, over_ranks


@dataclass(frozen=True)
class Job:
    """One training run.

    ``kfac`` are the preconditioner's settings, None for plain SGD; ``skewed`` gives each rank a quarter of the labels.
    With ``falling`` the learning rate decays linearly to zero. The training loss of the first ``tested`` samples (0 =
    all) is reported every ``every`` steps (0 = at the end).
    """

    task: str
    lr: float
    seed: int
    steps: int
    batch: int = 32
    momentum: float = 0.9
    kfac: dict[str, Any] | None = None
    falling: bool = False
    skewed: bool = False
    every: int = 0
    images: str = ""
    count: int = 0
    tested: int = 0

    def key(self) -> str:
        """Key of the job's result."""
        return str(sorted(asdict(self).items()))


@dataclass
class _Data:
    x: Any
    y: Any
    shards: list[np.ndarray] = field(default_factory=list)


def _digits() -> _Data:
    import torch

    from farshore.core.seeds import Seed
    from farshore.data.images import load_images

    train = load_images("digits", Path, Seed(0).child("data")).train
    x = torch.from_numpy(train.images).float().flatten(1)
    return _Data(x / x.max(), torch.from_numpy(train.labels).long())


def _cifar10(folder: str, count: int) -> _Data:
    import torch

    from farshore.core.seeds import Seed
    from farshore.data.images import load_images

    train = load_images("cifar10", lambda _: Path(folder), Seed(0).child("data")).train
    x = torch.from_numpy(train.images[:count]).float()
    mean, deviation = x.mean(dim=(0, 2, 3), keepdim=True), x.std(dim=(0, 2, 3), keepdim=True)
    return _Data((x - mean) / deviation, torch.from_numpy(train.labels[:count]).long())


def _make(job: Job) -> tuple[Any, Any, _Data]:
    """Build model, loss function and data of a job."""
    import torch
    from torch.nn import functional

    from farshore.models.cifar_resnet import CifarResNet
    from farshore.models.mlp import autoencoder, perceptron, reconstruction_loss

    torch.manual_seed(job.seed)
    if job.task == "autoencoder":
        data = _digits()
        return autoencoder(), lambda out, x, y: reconstruction_loss(out, x), data
    if job.task == "perceptron":
        return perceptron((64, 128, 64, 10)), lambda out, x, y: functional.cross_entropy(out, y), _digits()
    data = _cifar10(job.images, job.count)
    return CifarResNet(20), lambda out, x, y: functional.cross_entropy(out, y), data


def _train(job: Job, rank: int) -> list[float]:
    """Train a job; returns the training loss at the end, or every ``job.every`` steps."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    from farshore.algorithms.dp_kfac import DPKFAC

    model, loss_of, data = _make(job)
    base = torch.optim.SGD(model.parameters(), lr=job.lr, momentum=job.momentum)
    kfac = None if job.kfac is None else DPKFAC(model, lr=base, **job.kfac)
    wrapped = DistributedDataParallel(model)
    if kfac is not None:
        kfac.attach_ddp(wrapped)
    order = np.argsort(data.y.numpy(), kind="stable")
    shard = np.array_split(order, RANKS)[rank] if job.skewed else np.arange(len(data.y))
    draw = np.random.default_rng((job.seed, rank))
    losses = []
    for step in range(job.steps):
        if job.falling:
            base.param_groups[0]["lr"] = job.lr * (1 - step / job.steps)
        rows = torch.from_numpy(draw.choice(shard, job.batch, replace=False))
        base.zero_grad()
        loss_of(wrapped(data.x[rows]), data.x[rows], data.y[rows]).backward()
        if kfac is not None:
            kfac.step()
        base.step()
        if job.every and (step + 1) % job.every == 0:
            losses.append(_training_loss(model, loss_of, data, job.tested, rank))
    return losses or [_training_loss(model, loss_of, data, job.tested, rank)]


def _training_loss(model: Any, loss_of: Any, data: _Data, count: int, rank: int, size: int = 500) -> float:
    """Mean loss of training data in training mode (batch statistics included); divided among the ranks."""
    import torch
    import torch.distributed as dist

    if not all(torch.isfinite(p).all() for p in model.parameters()):
        return float("inf")
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    count = count or len(data.x)
    pairs = list(zip(torch.split(data.x[:count], size), torch.split(data.y[:count], size), strict=True))
    with torch.no_grad():
        total = torch.zeros((), dtype=torch.float64)
        for x, y in pairs[rank::RANKS]:
            total += loss_of(model(x), x, y) * len(x)
        dist.all_reduce(total)
        for name, b in model.named_buffers():
            b.copy_(buffers[name])
    return float(total) / count


def _train_all(rank: int, report: Callable[[Any], None], jobs: Sequence[Job]) -> None:
    for job in jobs:
        losses = _train(job, rank)
        if rank == 0:
            report((job.key(), losses))


def train(jobs: Sequence[Job]) -> dict[str, list[float]]:
    """Train all jobs on four ranks; returns losses by :meth:`Job.key`."""
    found: dict[str, list[float]] = {}
    for key, losses in over_ranks(_train_all, jobs):
        found[key] = losses
        print(f"[{len(found)}/{len(jobs)}] loss {losses[-1]:.4g}", flush=True)
    return found
