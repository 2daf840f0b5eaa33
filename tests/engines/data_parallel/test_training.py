"""One rank's step: accumulation, clipping, figures, evaluation, precision."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from farshore.core.errors import ConfigError, RunFailedError
from farshore.core.seeds import Seed
from farshore.data.images import load_images
from farshore.engines.data_parallel.image_config import DataParallelConfig
from farshore.engines.data_parallel.image_task import ImageClassification
from farshore.engines.data_parallel.task import Loss, ParameterGroup, TrainTask
from farshore.engines.data_parallel.training import Training

from .conftest import Waves

SEED = Seed(3)


def images(**settings: Any) -> Training:
    config = DataParallelConfig(model="mlp", steps=4, lr=0.05, **settings)
    task = ImageClassification(config, load_images("digits", Path, SEED.child("data")), SEED)
    return Training(config, task, SEED, 0, 1)


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


@pytest.mark.parametrize(("settings", "error"), [({}, 2e-6), ({"clip": 0.1}, 2e-6), ({"optimizer": "adamw"}, 5e-3)])
def test_accumulated_batches_equal_one_large_batch(settings: dict[str, Any], error: float) -> None:
    large, small = images(batch=48, **settings), images(batch=16, accumulate=3, **settings)
    for step in range(4):
        assert torch.allclose(large.step(step), small.step(step), atol=1e-4)
    # Adam divides by the gradient's size: differences of rounding are larger.
    assert torch.allclose(flat(large.model), flat(small.model), atol=error)


class Linear(TrainTask[Tensor]):
    """A linear model whose gradients are known: the loss is the sum of its weights times a factor."""

    metrics = ("weight",)

    def __init__(self, factor: float = 1.0, terms: Mapping[str, float] | None = None) -> None:
        self.model = nn.Linear(4, 1, bias=False)
        nn.init.zeros_(self.model.weight)
        self.factor, self.terms = factor, terms or {}

    def steps_per_epoch(self, ranks: int) -> int:
        return 10

    def batch(self, index: int, rank: int, ranks: int) -> Tensor:
        return torch.full((2, 4), self.factor)

    def loss(self, model: nn.Module, batch: Tensor) -> Loss:
        total = model(batch).mean()
        return Loss(total, {name: total.detach() * share for name, share in self.terms.items()})

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        assert not model.training
        return {"weight": float(next(model.parameters()).sum())}


def linear(task: TrainTask[Any], **settings: Any) -> Training:
    base = {"optimizer": "sgd", "momentum": 0, "weight_decay": 0, "lr": 1, "schedule": "constant", "steps": 3}
    return Training(DataParallelConfig(**{**base, **settings}), task, SEED, 0, 1)


def test_the_gradients_norm_is_clipped_after_unscaling() -> None:
    for precision in ("fp32", "fp16"):
        training = linear(Linear(100.0), clip=1.0, precision=precision)
        training.scaler.load_state_dict({**training.scaler.state_dict(), "scale": 4.0} if precision == "fp16" else {})
        training.step(0)
        assert float(flat(training.model).norm()) == pytest.approx(1.0, abs=1e-5)


def test_a_step_whose_fp16_gradients_overflow_changes_nothing_but_the_scale() -> None:
    training = linear(Linear(10_000.0), precision="fp16", ema=0.5)  # times 65536 overflows
    scale = training.scaler.get_scale()
    training.step(0)
    assert training.scaler.get_scale() == scale / 2
    assert not flat(training.model).any()
    assert training.average is not None
    assert int(training.average.arrays()["average_count"]) == 1


def test_named_terms_are_figures_if_there_are_several() -> None:
    training = linear(Linear(terms={"one": 0.25, "two": 0.75}))
    training.step(0)
    values = training.mean_over_ranks(training.step(1))
    assert list(values) == ["loss", "one", "two"]
    assert values["one"] == pytest.approx(values["loss"] / 4)
    single = linear(Linear(terms={"one": 1.0}))
    assert list(single.mean_over_ranks(single.step(0))) == ["loss"]


def test_reserved_and_changing_names_of_terms_are_refused() -> None:
    with pytest.raises(RunFailedError, match="reserved name 'lr'"):
        linear(Linear(terms={"lr": 0.5, "two": 0.5})).step(0)
    task = Linear(terms={"one": 0.5, "two": 0.5})
    training = linear(task)
    training.step(0)
    task.terms = {"one": 0.5, "three": 0.5}
    with pytest.raises(RunFailedError, match="names of terms changed"):
        training.step(1)


def test_an_evaluation_with_other_metrics_than_named_is_refused() -> None:
    task = Linear()
    task.metrics = ("weight", "bias")
    with pytest.raises(RunFailedError, match="returned weight, but it names bias, weight"):
        linear(task).evaluate()


def test_the_averaged_weights_are_evaluated_and_saved() -> None:
    training = linear(Linear(1.0), ema=0.75)
    training.step(0)  # w = -1 each, averaged -0.25 each
    assert training.evaluate() == {"weight": pytest.approx(-1.0)}
    assert training.result()["weight"].tolist() == [[-0.25] * 4]
    assert flat(training.model).tolist() == [-1.0] * 4


def test_groups_have_a_learning_rate_and_weight_decay_of_their_own() -> None:
    class Task(Linear):
        def parameter_groups(self) -> list[ParameterGroup]:
            return [ParameterGroup([self.model.weight], weight_decay=0.5, lr_scale=0.1)]

    task = Task()
    nn.init.ones_(task.model.weight)
    training = linear(task)
    training.step(0)
    assert flat(training.model).tolist() == pytest.approx([1 - 0.1 * (1 + 0.5)] * 4)


def test_groups_that_miss_or_repeat_a_parameter_are_refused() -> None:
    class Missing(Linear):
        def parameter_groups(self) -> list[ParameterGroup]:
            return []

    class Twice(Linear):
        def parameter_groups(self) -> list[ParameterGroup]:
            return [ParameterGroup([self.model.weight]), ParameterGroup([self.model.weight])]

    with pytest.raises(ConfigError, match="'weight' is in no parameter group"):
        linear(Missing())
    with pytest.raises(ConfigError, match="'weight' is in several parameter groups"):
        linear(Twice())


def test_the_best_state_needs_a_score() -> None:
    with pytest.raises(ConfigError, match="names none of its metrics"):
        linear(Linear(), keep_best=True)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_trains_like_fp32(waves: Waves, precision: str) -> None:
    full, reduced = waves.training(steps=60), waves.training(steps=60, precision=precision)
    for step in range(60):
        full.step(step), reduced.step(step)
    assert next(reduced.model.parameters()).dtype == torch.float32
    assert reduced.evaluate()["error"] == pytest.approx(full.evaluate()["error"], abs=0.02)


def test_sampled_labels_need_the_tasks_outputs() -> None:
    settings = {"preconditioner": "dp_kfac", "preconditioning": {"fisher": "mc1"}}
    with pytest.raises(ConfigError, match="the task's loss does not name them"):
        linear(Linear(), **settings).step(0)
