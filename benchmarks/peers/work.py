"""The work given to every simulator: models, data and clients. Depends on torch and numpy only."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

#: Images in the shared file; each client uses a window of them.
IMAGES = 10_000


@dataclass(frozen=True)
class Work:
    """A federated learning job.

    ``shape`` is the shape of an image; if empty, every client has one and the same sample, so that a round is little
    more than an echo: one forward and backward pass and one SGD step over all parameters. ``samples`` is the number of
    images per client, ``spread`` the standard deviation of its logarithm. ``rounds`` does not include the first round,
    which counts as start-up.
    """

    name: str
    clients: int
    cohort: int
    rounds: int
    model: str
    params: int = 0
    shape: tuple[int, ...] = ()
    samples: int = 0
    spread: float = 0.0
    batch: int = 10
    lr: float = 0.1

    def dumps(self) -> str:
        """Serialize to JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str) -> Work:
        """Parse from JSON."""
        fields = json.loads(text)
        return cls(**{**fields, "shape": tuple(fields["shape"])})

    def window(self, client: int) -> tuple[int, int]:
        """Index of the first image and number of images of a client."""
        if not self.shape:
            return 0, 1
        count = self.samples
        if self.spread:
            draw = np.random.default_rng(client).normal(np.log(self.samples) - self.spread**2 / 2, self.spread)
            count = int(np.clip(np.exp(draw), 1, 20 * self.samples))
        return client * 997 % (IMAGES - count), count


class Echo(nn.Module):
    """A model of ``params`` parameters."""

    def __init__(self, params: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(params))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :10] + self.weight[:10]


def build(work: Work) -> nn.Module:
    """Build the model with the same initial weights in every process."""
    torch.manual_seed(0)
    match work.model:
        case "echo":
            return Echo(work.params)
        case "logistic":  # 7,850 parameters
            return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
        case "small_cnn":  # 6,930
            first = [nn.Conv2d(1, 10, 3), nn.ReLU(), nn.MaxPool2d(2)]
            second = [nn.Conv2d(10, 20, 3), nn.ReLU(), nn.MaxPool2d(2)]
            return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(500, 10))
        case "cifar_cnn":  # 1,626,442: the CIFAR10 benchmark of pfl-research
            convs = [nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)]
            ends = [nn.Dropout(0.25), nn.Flatten(), nn.Linear(12544, 128), nn.ReLU(), nn.Dropout(0.5)]
            return nn.Sequential(*convs, *ends, nn.Linear(128, 10))
    raise ValueError(work.model)


#: The sample of an echo.
_ONE = torch.zeros(1, 10), torch.zeros(1, dtype=torch.long)

_opened: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}


def images(folder: str, work: Work) -> tuple[torch.Tensor, torch.Tensor]:
    """Load all images and labels, memory-mapped once per process; without a shape, the one sample."""
    if not work.shape:
        return _ONE
    key = f"{folder}/{'x'.join(map(str, work.shape))}"
    if key not in _opened:
        x, y = np.load(f"{key}.npy", mmap_mode="c"), np.load(f"{folder}/classes.npy")
        _opened[key] = torch.from_numpy(x), torch.from_numpy(y)
    return _opened[key]


def write_images(folder: Path, shape: tuple[int, ...]) -> None:
    """Write the files for :func:`images`, with random values: the cost does not depend on them."""
    rng = np.random.default_rng(0)
    path = folder / f"{'x'.join(map(str, shape))}.npy"
    if not path.exists():
        np.save(path, rng.standard_normal((IMAGES, *shape), dtype=np.float32))
    np.save(folder / "classes.npy", rng.integers(0, 10, IMAGES))


def local_sgd(model: nn.Module, x: torch.Tensor, y: torch.Tensor, batch: int, lr: float) -> float:
    """Train one epoch of plain SGD; returns the mean loss."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    total = 0.0
    for part_x, part_y in zip(x.split(batch), y.split(batch), strict=True):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(part_x), part_y)
        loss.backward()
        optimizer.step()
        total += float(loss.detach())
    return total / -(-len(x) // batch)


def stamp(event: str) -> None:
    """Signal an event to the measuring process and wait for its acknowledgement."""
    print(json.dumps({"event": event}), flush=True)
    sys.stdin.readline()
