"""Models by name return trainable logits; unsuitable ones are refused before training."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from farshore.core.errors import ConfigError
from farshore.models.catalog import build
from farshore.models.image_classifiers import build as build_with_features


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("mlp", 3072 * 256 + 256 + 256 * 128 + 128 + 128 * 10 + 10),
        ("resnet20", 269_722),
        ("resnet10", 4_903_242),
        ("resnet18", 11_173_962),
        ("resnet50", 23_520_842),
    ],
)
def test_the_loss_has_a_gradient_for_every_parameter(name: str, parameters: int) -> None:
    model = build(name, 10, 3, 32, seed=1)
    logits = model(torch.rand(2, 3, 32, 32))
    assert logits.shape == (2, 10)
    functional.cross_entropy(logits, torch.tensor([3, 7])).backward()
    assert all(p.grad is not None for p in model.parameters()), "DDP would wait for the missing gradients"
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_a_wide_resnet_equals_the_feature_extractor_of_the_same_name() -> None:
    model, other = build("resnet10", 10, 3, 32, seed=5), build_with_features("resnet10", 10, 3, seed=5)
    x = torch.rand(2, 3, 32, 32)
    assert model.state_dict().keys() == other.state_dict().keys()
    assert torch.equal(model(x), other(x)[0])


@pytest.mark.parametrize(
    ("name", "channels", "reason"),
    [
        ("resnet18", 1, "does not accept images of 1 x 32 x 32"),
        ("no_such_net", 3, "has no classifier 'no_such_net'"),
        ("fcn_resnet50", 3, "has no classifier"),
        ("vit_b_16", 3, "does not accept images of 3 x 32 x 32"),
    ],
)
def test_unsuitable_torchvision_models_are_refused_with_the_reason(name: str, channels: int, reason: str) -> None:
    pytest.importorskip("torchvision")
    with pytest.raises(ConfigError, match=reason):
        build(f"torchvision:{name}", 10, channels, 32, seed=1)


def test_models_with_several_outputs_are_refused_and_checks_do_not_change_the_initial_weights() -> None:
    models = pytest.importorskip("torchvision.models")
    with pytest.raises(ConfigError, match="several outputs"):
        build("torchvision:googlenet", 10, 3, 64, seed=1)
    torch.manual_seed(3)
    same = models.get_model("resnet18", weights=None, num_classes=10).state_dict()
    made = build("torchvision:resnet18", 10, 3, 32, seed=3).state_dict()
    assert all(torch.equal(made[name], tensor) for name, tensor in same.items())
