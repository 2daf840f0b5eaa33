"""DP-KFAC in real models: unusual modules, activation checkpoints, sequences, and invalid settings."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from farshore.algorithms.dp_kfac import DPKFAC, DPKFACOptimizer
from farshore.algorithms.dp_kfac.factors import input_factor, output_factor
from farshore.algorithms.dp_kfac.layers import find_layers
from farshore.algorithms.dp_kfac.statistics import sampled_loss
from farshore.core.errors import ConfigError
from farshore.models.cifar_resnet import CifarResNet
from farshore.models.mlp import perceptron


def every_step(model: nn.Module, **settings: object) -> DPKFAC:
    return DPKFAC(model, **{"lr": 0.1, "factor_steps": 1, "inv_steps": 1, "kl_clip": None, **settings})


class Odd(nn.Module):
    """Shared layers, attention, frozen and unused layers, sequences and in-place activations."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(6, 8)
        self.shared = nn.Linear(8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.unused = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.leave = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.enter(x), inplace=True)
        x = self.shared(torch.tanh(self.shared(x)))
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.leave(self.norm(self.frozen(x)).mean(dim=1))


def test_unusual_modules_are_preconditioned_or_skipped_as_documented() -> None:
    torch.manual_seed(7)
    model = Odd()
    kfac = every_step(model)
    assert {layer.name for layer in kfac.layers} == {"enter", "shared", "unused", "leave"}
    assert {"attention", "attention.out_proj", "frozen", "norm"} <= set(kfac.skipped)
    x, y = torch.randn(5, 4, 6), torch.randint(3, (5,))
    with torch.no_grad():
        model(x)
    model.eval()
    model(x).sum().backward()
    model.zero_grad()
    model.train()
    functional.cross_entropy(model(x), y).backward()
    unchanged = model.norm.weight.grad.clone()
    kfac.step()
    assert kfac.factors.names() == {"enter", "shared", "leave"}
    assert torch.equal(model.norm.weight.grad, unchanged)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_a_layer_called_twice_equals_a_convolution_with_two_positions() -> None:
    torch.manual_seed(8)
    shared = nn.Linear(3, 3).double()
    conv = nn.Conv2d(3, 3, 1).double()
    with torch.no_grad():
        conv.weight.copy_(shared.weight[:, :, None, None])
        conv.bias.copy_(shared.bias)
    x = torch.randn(4, 2, 3).double()
    one, other = every_step(nn.Sequential(shared)), every_step(nn.Sequential(conv))

    # A container, whose forward passes are counted.
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared = shared

        def forward(self, x: Tensor) -> Tensor:
            return self.shared(x[:, 0]).pow(2).sum(1) + self.shared(x[:, 1]).pow(2).sum(1)

    one = every_step(Twice())
    one.model(x).mean().backward()
    other.model(x.transpose(1, 2)[:, :, :, None]).pow(2).flatten(1).sum(1).mean().backward()
    one.step()
    other.step()
    for p, q in zip(one.factors.get("shared"), other.factors.get("0"), strict=True):
        assert torch.allclose(p, q)


@pytest.mark.parametrize("reentrant", [True, False])
def test_an_activation_checkpoint_counts_once(reentrant: bool) -> None:
    torch.manual_seed(9)
    x = torch.randn(5, 4, requires_grad=True)
    found = []
    for wrapped in (False, True):
        model = perceptron((4, 6, 2))
        torch.manual_seed(10)
        for p in model.parameters():
            nn.init.normal_(p)

        class Outer(nn.Module):
            def __init__(self, inner: nn.Module, wrapped: bool) -> None:
                super().__init__()
                self.inner, self.wrapped = inner, wrapped

            def forward(self, x: Tensor) -> Tensor:
                return checkpoint(self.inner, x, use_reentrant=reentrant) if self.wrapped else self.inner(x)

        kfac = every_step(Outer(model, wrapped))
        kfac.model(x).pow(2).mean().backward()
        kfac.step()
        found.append([p.grad for p in model.parameters()])
    assert all(torch.equal(p, q) for p, q in zip(*found, strict=True))


def test_sequences_are_averaged_or_flattened() -> None:
    torch.manual_seed(11)
    layer = nn.Linear(4, 3).double()
    x, grad = torch.randn(2, 5, 4).double(), torch.randn(2, 5, 3).double()
    assert torch.allclose(input_factor(layer, x), input_factor(layer, x.mean(1)))
    assert torch.allclose(output_factor(layer, grad), output_factor(layer, grad.mean(1)))
    assert torch.allclose(input_factor(layer, x, reduction="flatten"), input_factor(layer, x.reshape(10, 4)))
    assert torch.allclose(
        input_factor(layer, x[:, :, None].expand(2, 5, 3, 4)), input_factor(layer, x.mean(1)), rtol=1e-12
    )


def test_sampled_labels_make_the_factors_and_do_not_change_the_gradients() -> None:
    torch.manual_seed(12)
    model = perceptron((4, 5, 3)).double()
    kfac = every_step(model, fisher="mc1", inv_dtype=torch.float64)
    x, y = torch.randn(400, 4).double(), torch.zeros(400, dtype=torch.long)
    logits = model(x)
    kfac.sample_fisher(logits)
    assert all(p.grad is None for p in model.parameters())
    functional.cross_entropy(logits, y).backward()
    kfac.step()
    # The last layer's exact Fisher is E[diag(p) - p pᵀ]; the true labels, all of one class, give another matrix.
    p = logits.detach().softmax(1)
    exact = (torch.diag_embed(p) - p[:, :, None] * p[:, None]).mean(0)
    (_, sampled) = kfac.factors.get("3")
    labels = p - functional.one_hot(y, 3)
    empirical = labels.T @ labels / 400
    assert float((sampled - exact).norm()) < 0.15 * float(exact.norm())
    assert float((empirical - exact).norm()) > 0.3 * float(exact.norm())


def test_the_fisher_of_a_regression_is_that_of_normal_targets() -> None:
    torch.manual_seed(12)
    model = perceptron((4, 5, 3))
    kfac = every_step(model, fisher="mc1")
    outputs = model(torch.randn(4000, 4))
    kfac.sample_fisher(outputs, "normal")
    (outputs**2).mean().backward()
    kfac.step()
    # With unit variance the outputs' Fisher is the identity, whatever the outputs and the loss.
    (_, sampled) = kfac.factors.get("3")
    assert torch.allclose(sampled, torch.eye(3), atol=0.1)


def test_labels_are_sampled_for_each_position() -> None:
    torch.manual_seed(12)
    logits = torch.randn(2, 3, 4, 5)
    rows = logits.movedim(1, -1).reshape(-1, 3)
    assert torch.equal(sampled_loss(logits, 5), sampled_loss(rows, 5))


def test_a_discarded_step_leaves_layers_with_factors_alone_and_repeats_the_first_ones() -> None:
    torch.manual_seed(12)
    model = perceptron((4, 5, 3))
    kfac = DPKFAC(model, lr=0.1, factor_steps=10, inv_steps=10)

    def step() -> None:
        functional.cross_entropy(model(torch.randn(8, 4)), torch.zeros(8, dtype=torch.long)).backward()
        kfac.step()

    step()
    kfac.discard_step()
    assert not kfac.factors.names()
    assert not kfac.inverses.names()
    step()
    assert kfac.inverses.names() == {"1", "3"}
    step()
    kfac.discard_step()
    assert kfac.inverses.names() == {"1", "3"}
    assert kfac.steps == 3


def test_scaled_gradients_are_preconditioned_like_unscaled_ones() -> None:
    found = []
    for scale in (1.0, 1024.0):
        torch.manual_seed(12)
        model = perceptron((4, 5, 3)).double()
        kfac = every_step(model, inv_dtype=torch.float64, kl_clip=1e-4)
        kfac.statistics.grad_scale = scale
        (functional.cross_entropy(model(torch.randn(8, 4).double()), torch.arange(8) % 3) * scale).backward()
        kfac.step()
        found.append([p.grad / scale for p in model.parameters()])
        assert kfac.last_metrics["nu"] < 1
    assert all(torch.allclose(one, other, rtol=1e-9) for one, other in zip(*found, strict=True))


def test_kl_clipping_uses_the_optimizers_learning_rate() -> None:
    torch.manual_seed(13)
    model = perceptron((4, 3, 2))
    base = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    optimizer = DPKFACOptimizer(base, DPKFAC(model, lr=base, factor_steps=1, inv_steps=1, kl_clip=1e-6))
    scheduler = torch.optim.lr_scheduler.StepLR(base, 1, gamma=0.1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(torch.ones(2, 4)).pow(2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert optimizer.kfac.lr == 0.5
    scheduler.step()
    assert optimizer.kfac.lr == pytest.approx(0.05)
    first = optimizer.kfac.last_metrics
    assert first["nu"] == pytest.approx((1e-6 / (0.25 * abs(first["product"]))) ** 0.5)


@pytest.mark.parametrize(("depth", "count", "factors", "parameters"), [(20, 20, 2.34, 0.270), (110, 110, 15.56, 1.728)])
def test_cifar_resnets_have_the_published_sizes(depth: int, count: int, factors: float, parameters: float) -> None:
    model = CifarResNet(depth)
    layers, _ = find_layers(model)
    assert len(layers) == count
    assert round(sum(layer.factor_elements for layer in layers) / 1e6, 2) == factors
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 3) == parameters


def test_resnet_50_has_the_published_sizes() -> None:
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        layers, _ = find_layers(torchvision.models.resnet50())
    assert (len(layers), round(sum(layer.factor_elements for layer in layers) / 1e6, 2)) == (54, 153.85)
    assert max(layer.a for layer in layers) == 4608


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"skip_layers": ["nothing"]}, "no module matches nothing"),
        ({"skip_layers": ["("]}, "not a regular expression"),
        ({"factor_steps": 0}, "factor_steps is 0"),
        ({"damping": -1.0}, "damping is -1.0"),
        ({"assignment": {"1": 0}}, "'3' has no owner"),
        ({"assignment": {"1": 0, "3": 1}}, "'3' is assigned to rank 1 of 1"),
        ({"node_speed": [1.0, 2.0]}, "2 values for 1 ranks"),
        ({"strategy": "mem_opt", "grad_exchange": "owner"}, "needs all gradients on all ranks"),
        ({"color": "red"}, "color"),
    ],
)
def test_invalid_settings_raise_an_error_that_names_them(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words.replace("(", r"\(")):
        every_step(perceptron((4, 3, 2)), **settings)


def test_inv_steps_that_is_not_a_multiple_of_factor_steps_warns() -> None:
    with pytest.warns(UserWarning, match="not a multiple"):
        every_step(nn.Linear(2, 2), factor_steps=2, inv_steps=3)


def test_layers_are_skipped_by_name_class_and_width() -> None:
    def names(**settings: object) -> list[str]:
        return [layer.name for layer in every_step(perceptron((4, 3, 2)), **settings).layers]

    assert names(skip_layers=["3"]) == ["1"]
    assert names(exclude_out_features=2) == ["1"]
    with pytest.raises(ConfigError, match="no Linear or Conv2d"):
        names(skip_layers=["Linear"])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
