"""A flat model has the outputs, gradients and state of its module, in two buffers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from farshore.core.errors import ConfigError
from farshore.engines.federated.local import Sgd, train
from farshore.models.flat_params import FlatModel


def net() -> nn.Sequential:
    torch.manual_seed(3)
    layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)
    return nn.Sequential(*layers)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_outputs_gradients_and_statistics_equal_those_of_the_module(x: torch.Tensor) -> None:
    plain = net()
    flat = FlatModel(copy.deepcopy(plain))
    for _ in range(2):  # gradients accumulate, as in PyTorch
        for model in (plain, flat.module):
            model(x).square().mean().backward()
    assert torch.equal(flat.module(x), plain(x))
    for (name, p), q in zip(plain.named_parameters(), flat.module.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), name  # type: ignore[arg-type]
    assert all(torch.equal(g, p.grad) for g, p in zip(flat.gradients(), plain.parameters(), strict=True))  # type: ignore[arg-type]
    assert plain.state_dict().keys() == flat.module.state_dict().keys()
    assert all(torch.equal(v, flat.module.state_dict()[n]) for n, v in plain.state_dict().items())
    flat.clear_gradients()
    assert not any(gradient.any() for gradient in flat.gradients())


def test_unflatten_gives_views_in_the_shapes_of_the_parameters() -> None:
    flat = FlatModel(net())
    pieces = flat.unflatten(flat.trained)
    assert all(torch.equal(piece, p) for piece, p in zip(pieces, flat.module.parameters(), strict=True))
    assert all(piece.data_ptr() == p.data_ptr() for piece, p in zip(pieces, flat.parameters, strict=True))


@pytest.mark.parametrize("sgd", [Sgd(0.1), Sgd(0.1, momentum=0.9), Sgd(0.1, weight_decay=0.01), Sgd(0.1, mu=0.5)])
def test_layers_that_the_loss_does_not_use_are_stepped_with_zero_gradients(sgd: Sgd, x: torch.Tensor) -> None:
    layers = net(), net()
    flat = FlatModel(nn.ModuleList(layers))
    before = [p.clone() for p in layers[1].parameters()]
    train(flat, lambda batch: layers[0](batch).square().mean(), [x, x], sgd)
    factor = (1 - sgd.lr * sgd.weight_decay) ** 2
    for after, p in zip(layers[1].parameters(), before, strict=True):
        torch.testing.assert_close(after, factor * p)
    assert not any(torch.equal(a, b) for a, b in zip(layers[0][4].parameters(), layers[1][4].parameters(), strict=True))


def test_copying_the_buffers_copies_the_state(x: torch.Tensor) -> None:
    flat, other = FlatModel(net()), FlatModel(net())
    flat.module(x)
    assert flat.integers.tolist() == [1]
    with torch.no_grad():
        flat.trained.add_(1.0)
    assert not torch.equal(flat.module(x), other.module(x))
    other.floats.copy_(flat.floats)
    other.integers.copy_(flat.integers)
    flat.module.eval()
    other.module.eval()
    assert torch.equal(flat.module(x), other.module(x))


def test_layout_counts_the_bytes_of_a_state() -> None:
    flat = FlatModel(net())
    parameters = sum(p.numel() for p in flat.module.parameters())
    assert flat.layout.trainable == parameters == flat.trained.numel()
    assert flat.layout.payload_bytes == 4 * (parameters + 8) + 8 * 1
    assert [v.name for v in flat.layout.integers] == ["1.num_batches_tracked"]
    assert [v.name for v in flat.layout.floats][-2:] == ["1.running_mean", "1.running_var"]


def test_frozen_parameters_are_part_of_the_state_but_not_trained() -> None:
    module = net()
    module[0].requires_grad_(False)
    flat = FlatModel(module)
    assert flat.layout.trainable == sum(p.numel() for p in module[1:].parameters())
    assert module[0].weight.grad is None
    assert flat.layout.payload_bytes == FlatModel(net()).layout.payload_bytes


def test_error_about_an_unsupported_dtype_names_the_tensor() -> None:
    with pytest.raises(ConfigError, match=r"'0.weight' is torch.float64"):
        FlatModel(net().double())
