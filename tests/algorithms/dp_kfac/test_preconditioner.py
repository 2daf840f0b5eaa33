"""K-FAC in one process, compared with hand-computed values, dense solves and exact gradients.

The formulas are those of docs/methods/dp_kfac.md, sections 2 to 5.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from farshore.algorithms.dp_kfac import DPKFAC
from farshore.algorithms.dp_kfac.factors import input_factor, output_factor
from farshore.algorithms.dp_kfac.inverses import cholesky_inverse, eigen_inverse, kl_scale
from farshore.models.mlp import perceptron

X = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
DELTA = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
D = torch.tensor([[0.5, 1.0, 0.5], [3.0, 4.0, 1.0]], dtype=torch.float64)


def every_step(model: nn.Module, **settings: object) -> DPKFAC:
    return DPKFAC(model, **{"lr": 0.1, "factor_steps": 1, "inv_steps": 1, "kl_clip": None, **settings})


def hand_example(**settings: object) -> tuple[DPKFAC, nn.Linear]:
    layer = nn.Linear(2, 2).double()
    kfac = every_step(layer, damping=0.1, inv_dtype=torch.float64, **settings)
    (layer(X) * DELTA).sum(1).mean().backward()
    return kfac, layer


def matrix(layer: nn.Linear) -> Tensor:
    return torch.cat([layer.weight.grad, layer.bias.grad[:, None]], dim=1)


def test_eigen_inverse_equals_the_hand_computed_example() -> None:
    kfac, layer = hand_example()
    assert torch.equal(matrix(layer), D)
    kfac.step()
    a, g = kfac.factors.get("")
    assert a.tolist() == [[5, 7, 2], [7, 10, 3], [2, 3, 1]]
    assert g.tolist() == [[0.5, 0], [0, 2]]
    expected = [[-0.769231, 0.384615, 1.153846], [0.414201, 0.026298, -0.387903]]
    assert torch.allclose(matrix(layer), torch.tensor(expected).double(), atol=1e-6)
    assert kfac.last_metrics["product"] == pytest.approx(1.536818, abs=1e-6)


def test_cholesky_inverse_equals_the_hand_computed_example() -> None:
    kfac, layer = hand_example(inverse="cholesky")
    kfac.step()
    expected = [[-0.239797, 0.182401, 0.422198], [0.165982, 0.087442, -0.078540]]
    assert torch.allclose(matrix(layer), torch.tensor(expected).double(), atol=1e-6)


def test_kl_clipping_scales_the_step_to_its_bound() -> None:
    assert kl_scale(1.536818, 0.1, 1e-3) == pytest.approx(0.255087, abs=1e-6)
    kfac, layer = hand_example(kl_clip=1e-7)
    kfac.step()
    assert 0.1**2 * abs(float((matrix(layer) * D).sum())) * kfac.last_metrics["nu"] == pytest.approx(1e-7)


def test_zero_gradients_are_not_scaled() -> None:
    layer = nn.Linear(3, 2)
    kfac = every_step(layer, kl_clip=1e-3)
    (layer(torch.randn(4, 3)) * 0).sum().backward()
    kfac.step()
    assert kfac.last_metrics["nu"] == 1
    assert not layer.weight.grad.any()


def test_running_averages_can_start_with_the_identity() -> None:
    kfac, _ = hand_example(init="identity", ema_old=0.95)
    kfac.step()
    assert torch.allclose(kfac.factors.get("")[0][0], torch.tensor([1.2, 0.35, 0.1]).double())


def test_running_averages_start_with_the_first_batch_and_weight_the_old_value() -> None:
    kfac, layer = hand_example(ema_old=0.75)
    kfac.step()
    layer.zero_grad()
    (layer(3 * X) * DELTA).sum(1).mean().backward()
    kfac.step()
    a = input_factor(layer, X)
    assert torch.allclose(kfac.factors.get("")[0], 0.75 * a + 0.25 * input_factor(layer, 3 * X))


CONVS = [
    {"kernel_size": k, "stride": s, "padding": p, "bias": b}
    for k, s, p, b in itertools.product([1, 3, (1, 7)], [1, 2], [0, 2], [True, False])
] + [
    {"kernel_size": 3, "dilation": 2, "padding": 2, "bias": True},
    {"kernel_size": (2, 3), "padding": "same", "bias": True},
    {"kernel_size": 3, "padding": 1, "padding_mode": "reflect", "bias": False},
]


@pytest.mark.parametrize("settings", CONVS, ids=str)
def test_convolution_factors_equal_the_kfc_formula(settings: dict[str, object]) -> None:
    """Compared with patches obtained from the convolution itself, whose output is linear in its weight."""
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 3, **settings).double()
    images = torch.randn(3, 2, 9, 10, dtype=torch.float64)
    out = conv(images)
    grads = torch.randn_like(out)
    patches = patches_of(conv, images)
    n, s = 3, out.shape[2] * out.shape[3]
    kfc_a = input_factor(conv, images)
    assert torch.allclose(kfc_a, patches.T @ patches / n)
    flat = grads.permute(0, 2, 3, 1).reshape(-1, 3)
    kfc_g = output_factor(conv, grads)
    assert torch.allclose(kfc_g, n / s * flat.T @ flat)
    for scale, on_a, on_g in [("official", 1 / s**2, s**2), ("kfac_pytorch", 1 / s**3, 1 / (n**2 * s**2))]:
        assert torch.allclose(input_factor(conv, images, scale), kfc_a * on_a)
        assert torch.allclose(output_factor(conv, grads, scale), kfc_g * on_g)


def patches_of(conv: nn.Conv2d, images: Tensor) -> Tensor:
    """Return the patch matrix (N S, a): what each weight, and the bias, is multiplied by at each position."""
    columns = []
    with torch.no_grad():
        saved = [p.clone() for p in conv.parameters()]
        for p in conv.parameters():
            p.zero_()
        for index in range(conv.weight[0].numel()):
            conv.weight[0].view(-1)[index] = 1
            columns.append(conv(images)[:, 0].reshape(-1))
            conv.weight[0].view(-1)[index] = 0
        for p, old in zip(conv.parameters(), saved, strict=True):
            p.copy_(old)
    if conv.bias is not None:
        columns.append(torch.ones_like(columns[0]))
    return torch.stack(columns, dim=1)


def test_large_patch_matrices_are_computed_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    from farshore.algorithms.dp_kfac import factors

    conv = nn.Conv2d(2, 3, 3, padding=1).double()
    images = torch.randn(5, 2, 6, 6, dtype=torch.float64)
    whole = input_factor(conv, images)
    monkeypatch.setattr(factors, "CHUNK_ELEMENTS", 2 * 36 * 18)
    assert torch.allclose(input_factor(conv, images), whole)


LAYERS = [
    lambda: (nn.Linear(5, 3), torch.randn(8, 5)),
    lambda: (nn.Linear(5, 3, bias=False), torch.randn(8, 5)),
    lambda: (nn.Conv2d(2, 3, 3, stride=2, padding=1), torch.randn(4, 2, 7, 7)),
    lambda: (nn.Conv2d(2, 3, (1, 7), bias=False), torch.randn(4, 2, 3, 9)),
    lambda: (nn.Conv2d(3, 2, 1), torch.randn(4, 3, 4, 4)),
]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("make", LAYERS)
def test_eigen_inverse_solves_the_damped_kronecker_system(make: object, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(1)
    module, x = make()
    module, x = module.to(dtype), x.to(dtype)
    kfac = every_step(module, damping=0.1, inv_dtype=dtype, bcast_dtype=dtype)
    module(x).pow(2).flatten(1).sum(1).mean().backward()
    (layer,) = kfac.layers
    gradient = layer.gradient()
    kfac.step()
    a, g = kfac.factors.get(layer.name)
    dense = torch.kron(g, a) + 0.1 * torch.eye(layer.gradient_elements, dtype=dtype)
    expected = torch.linalg.solve(dense.double(), gradient.reshape(-1).double()).view(layer.g, layer.a)
    assert torch.allclose(
        layer.gradient().double(), expected, rtol=tolerance, atol=tolerance * float(expected.abs().max())
    )


def test_with_one_sample_the_fisher_block_is_the_outer_product_of_the_gradient() -> None:
    torch.manual_seed(2)
    model = perceptron((4, 5, 3)).double()
    kfac = every_step(model, inv_dtype=torch.float64)
    functional.cross_entropy(model(torch.randn(1, 4).double()), torch.tensor([1])).backward()
    gradients = {layer.name: layer.gradient().reshape(-1) for layer in kfac.layers}
    kfac.step()
    for name, gradient in gradients.items():
        a, g = kfac.factors.get(name)
        assert torch.allclose(torch.kron(g, a), torch.outer(gradient, gradient))


@pytest.mark.parametrize("inverse", [eigen_inverse, cholesky_inverse])
def test_preconditioned_gradients_are_descent_directions(inverse: object) -> None:
    generator = torch.Generator().manual_seed(3)
    for rank in (0, 1, 4, 7):
        a, g = (torch.randn(n, rank, generator=generator, dtype=torch.float64) for n in (7, 4))
        a, g = a @ a.T, g @ g.T
        gradient = torch.randn(4, 7, generator=generator, dtype=torch.float64)
        if rank == 0 and inverse is cholesky_inverse:
            continue  # raises: the trace of G is zero
        assert float((inverse(a, g, 1e-3)(gradient) * gradient).sum()) >= 0


def test_dead_units_do_not_break_the_inverse() -> None:
    """Entries that decay to denormals make LAPACK fail on finite float32 matrices (section 4.3 of the method page)."""
    torch.manual_seed(4)
    model = perceptron((8, 16, 4))
    kfac = every_step(model, ema_old=0.05, init="identity")
    with torch.no_grad():
        model[1].bias[::2] = -1e3
    for _ in range(200):
        model.zero_grad()
        functional.cross_entropy(model(torch.randn(6, 8)), torch.randint(4, (6,))).backward()
        kfac.step()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert not kfac.counts


def test_factors_and_inverses_are_updated_only_when_due() -> None:
    torch.manual_seed(5)
    model = perceptron((4, 3, 2))
    kfac = every_step(model, factor_steps=5, inv_steps=10)
    changed: list[tuple[int, bool, bool]] = []
    before: tuple[object, object] = (None, None)
    for step in range(21):
        model.zero_grad()
        model(torch.randn(6, 4)).pow(2).mean().backward()
        kfac.step()
        now = (kfac.factors.get("1")[0].clone(), kfac.inverses.get("1"))
        changed.append((step, before[0] is None or not torch.equal(before[0], now[0]), before[1] is not now[1]))
        before = now
    assert [step for step, factor, _ in changed if factor] == [0, 5, 10, 15, 20]
    assert [step for step, _, inverse in changed if inverse] == [0, 10, 20]


def test_accumulated_batches_equal_one_large_batch() -> None:
    torch.manual_seed(6)
    x, y = torch.randn(16, 4), torch.randint(3, (16,))
    whole, parts = perceptron((4, 5, 3)), perceptron((4, 5, 3))
    parts.load_state_dict(whole.state_dict())
    one, four = every_step(whole), every_step(parts, accumulation_steps=4)
    functional.cross_entropy(whole(x), y).backward()
    for index in range(4):
        part = slice(4 * index, 4 * index + 4)
        (functional.cross_entropy(parts(x[part]), y[part]) / 4).backward()
    one.step()
    four.step()
    for p, q in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, rtol=1e-4, atol=1e-6)


def test_scaled_gradients_are_unscaled_and_nonfinite_ones_are_ignored() -> None:
    kfac, layer = hand_example()
    kfac.step()
    expected = kfac.factors.get("")[1].clone()
    scaled = every_step(layer, damping=0.1, inv_dtype=torch.float64)
    scaled.statistics.grad_scale = 1024.0
    layer.zero_grad()
    (1024 * (layer(X) * DELTA).sum(1).mean()).backward()
    scaled.step()
    assert torch.allclose(scaled.factors.get("")[1], expected)
    layer.zero_grad()
    (float("inf") * layer(X).sum()).backward()
    scaled.step()
    assert torch.allclose(scaled.factors.get("")[1], expected)
    assert scaled.counts["nonfinite_factors"] == 1


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
