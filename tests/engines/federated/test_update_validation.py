"""What is not finite never enters a sum, whatever a method makes of an update."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from farshore.engines.federated.messages import UpdateError
from farshore.engines.federated.methods import (
    CONTROL,
    FLOATS,
    NORMALIZER,
    FedAvg,
    FederatedMethod,
    FedNova,
    Scaffold,
    Update,
)
from farshore.engines.federated.tree import Part
from farshore.engines.federated.update_validation import contributed
from farshore.models.flat_params import FlatModel

LARGEST = float(np.finfo(np.float32).max)


class Signs(FedAvg):
    """Adds up directions: of an infinite number there is a finite one."""

    def contribution(self, down: Part, update: Update) -> Part:
        moved = {name: np.sign(array - down[name]) for name, array in update.tensors.items()}
        return self.summand(moved, 1, None)


class Clipped(FedAvg):
    """As FedAvg, but its summands are cut off."""

    def summand(self, tensors: Part, weight: int, down: Part | None) -> Part:
        return super().summand({n: np.clip(np.nan_to_num(a), -1, 1) for n, a in tensors.items()}, weight, down)


class Direct(FedAvg):
    """Whole integers of the numbers, which of a NaN raise another error."""

    def contribution(self, down: Part, update: Update) -> Part:
        return {name: np.array([float(int(array.sum()))]) for name, array in update.tensors.items()}


def update_of(method: FederatedMethod) -> tuple[Part, Update]:
    torch.manual_seed(0)
    down = method.start(FlatModel(torch.nn.Linear(8, 3)))
    tensors = {name: np.array(array) for name, array in method.reply(down).items()}
    return down, Update(tensors, 7, 2, 0.5)


METHODS: list[Any] = [FedAvg(), Scaffold(), FedNova(27), Signs(), Clipped(), Direct()]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_an_array_that_is_not_finite_is_named_whatever_the_method_makes_of_it(method: Any, bad: float) -> None:
    down, update = update_of(method)
    assert contributed(method, down, update).keys() >= update.tensors.keys()
    for name in update.tensors.keys() & {FLOATS, CONTROL, NORMALIZER}:
        down, update = update_of(method)
        update.tensors[name][-1] = bad
        with pytest.raises(UpdateError, match=f"its '{name}' are not finite"):
            contributed(method, down, update)


def test_numbers_that_cancel_out_to_none_are_named_too() -> None:
    down, update = update_of(FedAvg())
    update.tensors[FLOATS][:2] = np.inf, -np.inf
    with pytest.raises(UpdateError, match="its 'floats' are not finite"):
        contributed(FedAvg(), down, update)


def test_numbers_that_are_finite_until_they_are_weighted_are_refused_as_too_large() -> None:
    down, update = update_of(FedAvg())
    update.tensors[FLOATS][0] = LARGEST / 2
    with pytest.raises(UpdateError, match="times its weight are too large"):
        contributed(FedAvg(), down, update)


def test_large_numbers_whose_sum_alone_is_not_finite_are_taken() -> None:
    down, update = update_of(FedAvg())
    update.tensors[FLOATS][:] = LARGEST / 8
    part = contributed(FedAvg(), down, update)
    assert part[FLOATS].tobytes() == (update.tensors[FLOATS] * np.float32(7)).tobytes()


def test_an_update_that_moved_too_far_is_refused_by_its_distance() -> None:
    down, update = update_of(FedAvg())
    update.tensors[FLOATS][0] += 3
    assert contributed(FedAvg(), down, update, 3.5)
    with pytest.raises(UpdateError, match="moved the model by 3, more than the 2"):
        contributed(FedAvg(), down, update, 2.0)
