"""A run that is killed at a checkpoint and resumed ends with the bits of an uninterrupted one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from farshore.core.errors import StorageError
from farshore.core.seeds import Seed
from farshore.engines.data_parallel.task import Loss
from farshore.engines.data_parallel.training import Training
from farshore.engines.data_parallel.training_state import load_training, training_arrays

from .conftest import MemoryGroup, PowerCutError, Waves

CASES: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd"},
    "nesterov": {"optimizer": "sgd", "nesterov": True},
    "adam": {"optimizer": "adam"},
    "adamw": {},
    "averaged weights": {"ema": 0.9, "ema_warmup": True},
    "accumulation": {"accumulate": 3, "clip": 0.5},
    "fp16": {"precision": "fp16"},
    "bf16": {"precision": "bf16"},
    "one-cycle": {"schedule": "one_cycle", "cycle_momentum": 0.8},
    "best state": {"eval_every": 2, "keep_best": True, "early_stop": 3, "lr": 0.3, "steps": 40},
    "dp_kfac": {"preconditioner": "dp_kfac", "preconditioning": {"factor_steps": 2, "inv_steps": 4}},
    "dp_kfac, fp16, sampled labels": {
        "preconditioner": "dp_kfac",
        "preconditioning": {"factor_steps": 2, "inv_steps": 4, "fisher": "mc1"},
        "precision": "fp16",
        "accumulate": 2,
    },
    "all": {"optimizer": "adam", "ema": 0.5, "accumulate": 2, "clip": 1.0, "precision": "fp16", "eval_every": 3},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("cut_at", [4, 8])
def test_resumed_run_equals_uninterrupted_run(waves: Waves, case: str, cut_at: int) -> None:
    settings = {"checkpoint_every": 4, "log_every": 1, **CASES[case]}
    whole, cut = MemoryGroup(), MemoryGroup(cut_at=cut_at)
    waves.run(whole, **settings)
    assert whole.saved.keys() >= {4, 8}
    with pytest.raises(PowerCutError):
        waves.run(cut, **settings)
    resumed = MemoryGroup(saved=cut.saved)
    waves.run(resumed, **settings)
    assert whole.result.keys() == resumed.result.keys()
    assert all(torch.equal(whole.result[name], resumed.result[name]) for name in whole.result)
    assert whole.fields == resumed.fields
    again = [(step, control) for step, control, _ in whole.sent if step > cut_at]
    assert again == [(step, control) for step, control, _ in resumed.sent]


def test_the_scale_of_fp16_gradients_is_part_of_a_checkpoint(waves: Waves) -> None:
    training, other = waves.training(precision="fp16"), waves.training(precision="fp16")
    training.scaler.load_state_dict({**training.scaler.state_dict(), "scale": 8.0, "_growth_tracker": 5})
    training.step(0)
    load_training(other, training_arrays(training), 1)
    assert other.scaler.get_scale() == 8
    assert other.scaler.state_dict()["_growth_tracker"] == 6


class Counting:
    """Adds state of its own to the example's task: the batches that it has seen."""

    def __init__(self) -> None:
        self.seen = 0

    def state(self) -> dict[str, Any]:
        return {"seen": np.array(self.seen)}

    def load_state(self, arrays: Any) -> None:
        self.seen = int(arrays["seen"])


def test_a_tasks_own_state_is_saved_and_restored(waves: Waves) -> None:
    module = waves.module

    class Task(Counting, module.WaveTask):  # type: ignore[misc, name-defined]
        def __init__(self, config: Any) -> None:
            Counting.__init__(self)
            module.WaveTask.__init__(self, config, Seed(7))

        def loss(self, model: nn.Module, batch: Any) -> Loss:
            self.seen += 1
            loss: Loss = super().loss(model, batch)
            return loss

    config = module.WaveConfig(steps=3)
    training = Training(config, Task(config), Seed(7), 0, 1)
    for step in range(3):
        training.step(step)
    fresh = Task(config)
    load_training(Training(config, fresh, Seed(7), 0, 1), training_arrays(training), 3)
    assert fresh.seen == 3


def test_dropout_depends_on_the_step_alone(waves: Waves) -> None:
    def weights(first: int) -> torch.Tensor:
        training = waves.training(optimizer="sgd", schedule="constant")
        training.model.insert(1, nn.Dropout(0.5))  # type: ignore[operator]
        torch.manual_seed(first)  # what other code draws does not matter, and is not disturbed
        before = torch.get_rng_state()
        waves.train(training, MemoryGroup())
        assert torch.equal(torch.get_rng_state(), before)
        return torch.cat([p.detach().reshape(-1) for p in training.model.parameters()])

    assert torch.equal(weights(1), weights(2))


def test_a_checkpoint_without_averaged_weights_is_refused_where_they_are_needed(waves: Waves) -> None:
    plain, averaged = waves.training(), waves.training(ema=0.9)
    with pytest.raises(StorageError, match="no average of this model's weights"):
        load_training(averaged, training_arrays(plain), 0)
