"""Assignment of layers to owner ranks (docs/methods/dp_kfac.md, section 7)."""

from __future__ import annotations

import pytest
import torch

from farshore.algorithms.dp_kfac.assignment import Cost, assign, load_imbalance
from farshore.algorithms.dp_kfac.layers import Layer, find_layers
from farshore.models.mlp import perceptron


@pytest.fixture(scope="module")
def resnet50() -> list[Layer]:
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        return find_layers(torchvision.models.resnet50())[0]


def test_four_layers_are_assigned_to_four_ranks() -> None:
    layers, _ = find_layers(perceptron((784, 512, 512, 512, 10)))
    assert list(assign(layers, 4).values()) == [0, 1, 2, 3]


def test_lpt_balances_what_round_robin_does_not(resnet50: list[Layer]) -> None:
    assert load_imbalance(resnet50, assign(resnet50, 4), 4) <= 1.01
    assert load_imbalance(resnet50, assign(resnet50, 4, "round_robin"), 4) == pytest.approx(1.98, abs=0.01)
    # With 64 ranks one 4608-wide layer exceeds the mean load, whichever rank owns it.
    assert load_imbalance(resnet50, assign(resnet50, 64), 64) == pytest.approx(13.85, abs=0.01)


def test_a_rank_of_twice_the_speed_gets_twice_the_work(resnet50: list[Layer]) -> None:
    owners = assign(resnet50, 3, speed=[2.0, 1.0, 1.0])
    loads = [sum(Cost().of(layer) for layer in resnet50 if owners[layer.name] == rank) for rank in range(3)]
    assert loads[0] / loads[1] == pytest.approx(2, rel=0.05)
    assert loads[1] / loads[2] == pytest.approx(1, rel=0.05)


def test_fixed_layers_keep_their_owner(resnet50: list[Layer]) -> None:
    fixed = {layer.name: 0 for layer in resnet50[:10]}
    owners = assign(resnet50, 4, fixed=fixed)
    assert fixed.items() <= owners.items()
    assert load_imbalance(resnet50, owners, 4) < 1.05


def test_cost_of_factors_depends_on_the_rows_of_the_patch_matrix() -> None:
    layers, _ = find_layers(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 8, 3)))
    rows = {"0": 1_000_000, "1": 10}
    without, with_rows = Cost(), Cost(rows=rows)
    assert without.of(layers[0]) < without.of(layers[1])
    assert with_rows.of(layers[0]) > with_rows.of(layers[1])
