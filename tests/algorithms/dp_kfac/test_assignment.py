"""Which rank owns which layer (specification §3.7, check 12)."""

from __future__ import annotations

import pytest
import torch

from farshore.algorithms.dp_kfac.assignment import Cost, assign, balance
from farshore.algorithms.dp_kfac.layers import Layer, find_layers
from farshore.models.mlp import perceptron


@pytest.fixture(scope="module")
def resnet50() -> list[Layer]:
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        return find_layers(torchvision.models.resnet50())[0]


def test_four_layers_go_to_four_ranks() -> None:
    layers, _ = find_layers(perceptron((784, 512, 512, 512, 10)))
    assert list(assign(layers, 4).values()) == [0, 1, 2, 3]


def test_heavy_layers_first_balances_what_turns_do_not(resnet50: list[Layer]) -> None:
    assert balance(resnet50, assign(resnet50, 4), 4) <= 1.01
    assert balance(resnet50, assign(resnet50, 4, "round_robin"), 4) == pytest.approx(1.98, abs=0.01)
    # One 4608-wide layer is more than a rank's share then, whoever has it.
    assert balance(resnet50, assign(resnet50, 64), 64) == pytest.approx(13.85, abs=0.01)


def test_a_rank_of_twice_the_speed_gets_twice_the_work(resnet50: list[Layer]) -> None:
    owners = assign(resnet50, 3, speed=[2.0, 1.0, 1.0])
    loads = [sum(Cost().of(layer) for layer in resnet50 if owners[layer.name] == rank) for rank in range(3)]
    assert loads[0] / loads[1] == pytest.approx(2, rel=0.05)
    assert loads[1] / loads[2] == pytest.approx(1, rel=0.05)


def test_layers_that_stay_are_not_moved(resnet50: list[Layer]) -> None:
    kept = {layer.name: 0 for layer in resnet50[:10]}
    owners = assign(resnet50, 4, kept=kept)
    assert kept.items() <= owners.items()
    assert balance(resnet50, owners, 4) < 1.05


def test_early_convolutions_count_once_their_rows_are_known() -> None:
    layers, _ = find_layers(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 8, 3)))
    rows = {"0": 1_000_000, "1": 10}
    without, with_rows = Cost(), Cost(rows=rows)
    assert without.of(layers[0]) < without.of(layers[1])
    assert with_rows.of(layers[0]) > with_rows.of(layers[1])
