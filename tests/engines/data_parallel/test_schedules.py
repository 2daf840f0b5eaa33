"""Schedules are those of the usual formulas and of torch."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from farshore.engines.data_parallel.config import TrainingConfig
from farshore.engines.data_parallel.schedules import learning_rate, momentum

TOTAL = 50


def rates(**settings: object) -> list[float]:
    config = TrainingConfig(**{"lr": 0.5, **settings})
    return [learning_rate(config, step, TOTAL) for step in range(TOTAL)]


@pytest.mark.parametrize("peak", [0.3, 0.4, 0.75])
def test_one_cycle_is_torchs(peak: float) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.5, TOTAL, pct_start=peak, base_momentum=0.8, max_momentum=0.9
    )
    expected, moments = [], []
    for _ in range(TOTAL):
        expected.append(optimizer.param_groups[0]["lr"])
        moments.append(optimizer.param_groups[0]["momentum"])
        optimizer.step()
        scheduler.step()
    assert rates(schedule="one_cycle", cycle_peak=peak) == pytest.approx(expected, rel=1e-9)
    config = TrainingConfig(schedule="one_cycle", cycle_peak=peak, cycle_momentum=0.8)
    assert [momentum(config, step, TOTAL) for step in range(TOTAL)] == pytest.approx(moments, rel=1e-9)


def test_cosine_falls_from_the_learning_rate_to_the_minimum() -> None:
    expected = [0.1 + 0.4 * 0.5 * (1 + math.cos(math.pi * step / TOTAL)) for step in range(TOTAL)]
    assert rates(lr_min=0.1) == pytest.approx(expected)


def test_warmup_is_linear_and_then_leaves_the_schedule_alone() -> None:
    plain, warm = rates(), rates(warmup=10)
    assert warm[:10] == pytest.approx([rate * (step + 1) / 10 for step, rate in enumerate(plain[:10])])
    assert warm[10:] == plain[10:]


def test_steps_and_polynomials_fall_as_configured() -> None:
    assert rates(schedule="constant") == [0.5] * TOTAL
    expected = [0.5] * 20 + [0.25] * 20 + [0.125] * 10
    assert rates(schedule="step", lr_drops=(0.4, 0.8), lr_gamma=0.5) == expected
    polynomial = rates(schedule="polynomial", lr_power=2, lr_min=0.1)
    assert polynomial == pytest.approx([0.1 + 0.4 * (1 - step / TOTAL) ** 2 for step in range(TOTAL)])


@pytest.mark.parametrize("total", [1, 2, 3])
def test_runs_of_few_steps_have_finite_rates(total: int) -> None:
    for schedule in ("one_cycle", "cosine", "step", "polynomial"):
        config = TrainingConfig(schedule=schedule)
        assert all(0 <= learning_rate(config, step, total) <= config.lr for step in range(total))


def test_only_the_one_cycle_schedule_changes_momentum() -> None:
    assert momentum(TrainingConfig(cycle_momentum=0.8), 3, TOTAL) is None
    assert momentum(TrainingConfig(schedule="one_cycle"), 3, TOTAL) is None
    adam = TrainingConfig(schedule="one_cycle", cycle_momentum=0.8, optimizer="adam", betas=(0.95, 0.99))
    assert momentum(adam, 0, TOTAL) == pytest.approx(0.95)


def test_one_cycle_refuses_another_warmup() -> None:
    with pytest.raises(ValidationError, match="warm-up of its own"):
        TrainingConfig(schedule="one_cycle", warmup=3)
