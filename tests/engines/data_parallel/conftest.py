"""The task of ``examples/train_task.py``, and groups of ranks without a server."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from farshore.core.control import Control
from farshore.core.message import Array, Scalar
from farshore.core.seeds import Seed
from farshore.engines.collective.protocol import End
from farshore.engines.data_parallel.loop import train
from farshore.engines.data_parallel.protocol import Trained
from farshore.engines.data_parallel.training import Training

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "train_task.py"


class PowerCutError(Exception):
    """Ends a training run as a crash would."""


@dataclass
class MemoryGroup:
    """The only rank of a group, which keeps its checkpoints and messages in memory."""

    saved: dict[int, dict[str, Array]] = field(default_factory=dict)
    cut_at: int = -1
    sent: list[tuple[int, Control, Mapping[str, torch.Tensor]]] = field(default_factory=list)
    result: dict[str, torch.Tensor] = field(default_factory=dict)
    fields: dict[str, Scalar] = field(default_factory=dict)
    rank: int = 0
    size: int = 1
    source: int = -1
    current: int = 0

    @property
    def step(self) -> int:
        return max(self.saved, default=0)

    @property
    def has_checkpoint(self) -> bool:
        return bool(self.saved)

    def load_checkpoint(self) -> tuple[dict[str, Array], dict[str, Any]]:
        return self.saved[self.step], {}

    def set_step(self, step: int) -> None:
        self.current = step

    def send(self, control: Control, tensors: Mapping[str, torch.Tensor] | None = None) -> None:
        self.sent.append((self.current, control, {n: t.clone() for n, t in (tensors or {}).items()}))

    def checkpoint(self, step: int, tensors: Mapping[str, Array], meta: Mapping[str, Any]) -> None:
        self.saved[step] = dict(tensors)
        if step == self.cut_at:
            raise PowerCutError

    def finish(self, tensors: Mapping[str, torch.Tensor], end: End) -> None:
        assert isinstance(end, Trained)
        self.result, self.fields = {n: t.clone() for n, t in tensors.items()}, dict(end.values)


@pytest.fixture(scope="session")
def example() -> Iterator[ModuleType]:
    """The module ``examples/train_task.py``."""
    spec = importlib.util.spec_from_file_location("train_task", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_task"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["train_task"]


class Waves:
    """Trains the example's task in this process."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module

    def training(self, **settings: Any) -> Training:
        config = self.module.WaveConfig(**{"steps": 12, "batch": 8, "width": 8, "device": "cpu", **settings})
        return Training(config, self.module.WORKLOAD.make_task(config, Seed(7), Path), Seed(7), 0, 1)

    def run(self, group: MemoryGroup, **settings: Any) -> None:
        self.train(self.training(**settings), group)

    def train(self, training: Training, group: MemoryGroup) -> None:
        train(training, group)


@pytest.fixture
def waves(example: ModuleType) -> Waves:
    return Waves(example)
