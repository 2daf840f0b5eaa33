"""A step computes on the chosen device: nothing of the model, the batch or the optimizer stays elsewhere.

The device is torch's ``meta``, which every machine has: shapes and types are computed, values are not.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from farshore.core.seeds import Seed
from farshore.data.images import load_images
from farshore.engines.data_parallel import training as module
from farshore.engines.data_parallel.image_config import DataParallelConfig
from farshore.engines.data_parallel.image_task import ImageClassification
from farshore.engines.data_parallel.task import TrainTask

META = torch.device("meta")


class OneDevice(TorchDispatchMode):
    """Refuses operations on tensors of two devices, except copies and scalars of the CPU, as on a GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor) and t.dim()]
        if func.overloadpacket not in (torch.ops.aten._to_copy, torch.ops.aten.copy_):
            assert len({t.device.type for t in tensors}) <= 1, f"{func} mixes devices"
        return func(*args, **kwargs)


@pytest.fixture
def on_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "choose_device", lambda name: META)
    monkeypatch.setattr(module, "autocast", lambda device, precision: contextlib.nullcontext())
    monkeypatch.setattr(module, "seed_generators", lambda device, seed: None)


def check(task: TrainTask[Any], config: Any) -> None:
    training = module.Training(config, task, Seed(3), 0, 1)
    with OneDevice():
        for step in range(2):
            assert training.step(step).device == META
    assert {p.device for p in training.model.parameters()} == {META}
    state = [t for slots in training.optimizer.state.values() for t in slots.values()]
    assert {t.device for t in state if t.dim()} == {META}


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.usefixtures("on_meta")
def test_image_classification_computes_on_the_device(optimizer: str) -> None:
    config = DataParallelConfig(model="resnet20", batch=4, optimizer=optimizer, accumulate=2, clip=1.0, augment=True)
    check(ImageClassification(config, load_images("digits", Path, Seed(3).child("data")), Seed(3)), config)


@pytest.mark.usefixtures("on_meta")
def test_the_examples_task_computes_on_the_device(example: Any) -> None:
    config = example.WaveConfig(width=8, batch=4, ema=0.9)
    check(example.WaveTask(config, Seed(3)), config)


@pytest.mark.usefixtures("on_meta")
def test_a_batch_that_stays_behind_is_noticed(example: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "to_device", lambda batch, device: batch)
    config = example.WaveConfig(width=8, batch=4)
    with pytest.raises((AssertionError, RuntimeError)):
        check(example.WaveTask(config, Seed(3)), config)
