"""Averaged weights follow the formula, for parameters and buffers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from farshore.engines.data_parallel.averaging import WeightAverage


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def test_the_average_begins_with_the_initial_weights_and_includes_float_buffers() -> None:
    net = model()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    average = WeightAverage(net, 0.9, warmup=False)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1)
    net(torch.randn(8, 3))  # changes the running statistics and the count of batches
    average.update(net)
    now = net.state_dict()
    for name, tensor in average.model.state_dict().items():
        expected = 0.9 * before[name] + 0.1 * now[name] if tensor.is_floating_point() else now[name]
        assert torch.allclose(tensor, expected), name


def test_the_decay_rises_with_warmup() -> None:
    net = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(net.weight)
    average = WeightAverage(net, 0.5, warmup=True)
    nn.init.ones_(net.weight)
    expected = 0.0
    for n in range(1, 30):
        average.update(net)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay)
        assert float(average.model.state_dict()["weight"]) == pytest.approx(expected, rel=1e-5)


def test_updating_the_average_does_not_touch_the_model_or_its_hooks() -> None:
    net = model()
    average = WeightAverage(net, 0.9, warmup=False)
    calls = []
    net.register_forward_hook(lambda *_: calls.append(1))
    average.model.eval()(torch.randn(2, 3))
    assert not calls
    assert not any(p.requires_grad for p in average.model.parameters())
    assert all(p.requires_grad for p in net.parameters())


def test_state_goes_through_arrays() -> None:
    net = model()
    one, other = WeightAverage(net, 0.9, warmup=True), WeightAverage(model(), 0.9, warmup=True)
    nn.init.ones_(net[0].weight)  # type: ignore[index]
    one.update(net)
    other.load(one.arrays())
    one.update(net)
    other.update(net)
    for name, tensor in one.model.state_dict().items():
        assert torch.equal(tensor, other.model.state_dict()[name])
