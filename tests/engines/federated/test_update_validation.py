"""Non-finite updates never enter a sum, whatever a method computes from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from farshore.engines.federated.drift_correction import FedNova, Scaffold
from farshore.engines.federated.messages import UpdateError
from farshore.engines.federated.methods import CONTROL, FLOATS, NORMALIZER, FedAvg, FederatedMethod, Update
from farshore.engines.federated.tree import NamedArrays
from farshore.engines.federated.update_validation import validated_contribution
from farshore.models.flat_params import FlatModel

LARGEST = float(np.finfo(np.float32).max)


class Signs(FedAvg):
    """Sums signs, which are finite even for infinite values."""

    def contribution(self, down: NamedArrays, update: Update) -> NamedArrays:
        moved = {name: np.sign(array - down[name]) for name, array in update.tensors.items()}
        return self.summand(moved, 1, None)


class Clipped(FedAvg):
    """FedAvg with clipped summands."""

    def summand(self, tensors: NamedArrays, weight: int, down: NamedArrays | None) -> NamedArrays:
        return super().summand({n: np.clip(np.nan_to_num(a), -1, 1) for n, a in tensors.items()}, weight, down)


class Truncated(FedAvg):
    """Converts sums to integers, which raises another error for NaN."""

    def contribution(self, down: NamedArrays, update: Update) -> NamedArrays:
        return {name: np.array([float(int(array.sum()))]) for name, array in update.tensors.items()}


def update_of(method: FederatedMethod) -> tuple[NamedArrays, Update]:
    torch.manual_seed(0)
    down = method.start(FlatModel(torch.nn.Linear(8, 3)))
    tensors = {name: np.array(array) for name, array in method.reply(down).items()}
    return down, Update(tensors, 7, 2, 0.5)


METHODS: list[Any] = [FedAvg(), Scaffold(), FedNova(27), Signs(), Clipped(), Truncated()]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_a_non_finite_array_is_reported_by_name_for_every_method(method: Any, bad: float) -> None:
    down, update = update_of(method)
    assert validated_contribution(method, down, update).keys() >= update.tensors.keys()
    for name in update.tensors.keys() & {FLOATS, CONTROL, NORMALIZER}:
        down, update = update_of(method)
        update.tensors[name][-1] = bad
        with pytest.raises(UpdateError, match=f"'{name}' has non-finite values"):
            validated_contribution(method, down, update)


def test_infinite_values_of_opposite_sign_are_reported() -> None:
    down, update = update_of(FedAvg())
    update.tensors[FLOATS][:2] = np.inf, -np.inf
    with pytest.raises(UpdateError, match="'floats' has non-finite values"):
        validated_contribution(FedAvg(), down, update)


def test_values_that_overflow_when_weighted_are_refused() -> None:
    down, update = update_of(FedAvg())
    update.tensors[FLOATS][0] = LARGEST / 2
    with pytest.raises(UpdateError, match="overflows when multiplied by its weight"):
        validated_contribution(FedAvg(), down, update)


def test_large_finite_values_with_an_infinite_sum_are_accepted() -> None:
    down, update = update_of(FedAvg())
    update.tensors[FLOATS][:] = LARGEST / 8
    part = validated_contribution(FedAvg(), down, update)
    assert part[FLOATS].tobytes() == (update.tensors[FLOATS] * np.float32(7)).tobytes()


def test_an_update_with_too_large_a_norm_is_refused() -> None:
    down, update = update_of(FedAvg())
    update.tensors[FLOATS][0] += 3
    assert validated_contribution(FedAvg(), down, update, 3.5)
    with pytest.raises(UpdateError, match="norm 3 exceeds the limit 2"):
        validated_contribution(FedAvg(), down, update, 2.0)


def test_a_subclass_has_a_capability_unless_it_overrides_what_the_capability_is_about() -> None:
    class Renamed(FedAvg):
        def finish(self, state: NamedArrays, total: NamedArrays, population: int) -> NamedArrays:
            return super().finish(state, total, population)

    class Declared(Clipped):
        contribution_scales = True

        def summand(self, tensors: NamedArrays, weight: int, down: NamedArrays | None) -> NamedArrays:
            return FedAvg.summand(self, tensors, weight, down)

    class OwnTraining(Scaffold):
        def local(self, flat: FlatModel, down: NamedArrays, work: Any) -> Update:
            return super().local(flat, down, work)

    scales = {kind: kind.contribution_scales for kind in (FedAvg, Scaffold, Renamed, Declared, FedNova, Signs, Clipped)}
    assert [kind.__name__ for kind, has in scales.items() if has] == ["FedAvg", "Scaffold", "Renamed", "Declared"]
    assert (FedAvg.can_lend_state, Renamed.can_lend_state, Scaffold.can_lend_state) == (True, True, False)
    assert (OwnTraining.contribution_scales, OwnTraining.trains_in_batches) == (True, False)
