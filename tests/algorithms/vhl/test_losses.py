"""VHL's loss: reference values, gradients and every switch."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from pydantic import ValidationError

from farshore.algorithms.vhl.anchors import anchor_means, draw_anchors, feature_map
from farshore.algorithms.vhl.contrast import contrastive_from_logits, normalize_rows, supervised_contrastive
from farshore.algorithms.vhl.heads import widen_head
from farshore.algorithms.vhl.losses import LossOptions, VHLLoss
from farshore.core.errors import ConfigError
from farshore.models.image_classifiers import build

C, B, B_V, D = 4, 6, 8, 5


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def labels(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(C, (count,), generator=torch.Generator().manual_seed(seed))


def batch(outputs: int = 2 * C) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits and features that require gradients, y and y_v."""
    logits, features = normal(B + B_V, outputs, seed=1), normal(B + B_V, D, seed=2)
    return logits.requires_grad_(), features.requires_grad_(), labels(B, 3), labels(B_V, 4)


def by_hand(z: torch.Tensor, y: list[int], tau: float) -> float:
    """The contrastive loss by its definition, term by term."""
    z = z.detach()
    total = 0.0
    for i in range(len(y)):
        others = [a for a in range(len(y)) if a != i]
        positives = [j for j in others if y[j] == y[i]]
        denominator = math.log(sum(math.exp(float(z[i] @ z[a]) / tau) for a in others))
        total -= sum(float(z[i] @ z[j]) / tau - denominator for j in positives) / max(1, len(positives))
    return total / len(y)


# ---- the contrastive loss


@pytest.mark.parametrize(
    ("features", "y", "tau", "expected"),
    [
        ([[1, 0], [1, 0], [0, 1], [0, 1]], [0, 0, 1, 1], 0.07, math.log1p(2 * math.exp(-1 / 0.07))),
        ([[1, 0]] * 4, [0, 0, 1, 1], 0.07, math.log(3)),
        ([[1, 0]] * 4, [0, 0, 1, 2], 0.07, math.log(3) / 2),
        ([[1, 0]] * 4, [0, 1, 2, 3], 0.07, 0.0),
        ([[1, 0], [0.6, 0.8], [0, 1], [-1, 0]], [0, 0, 1, 1], 0.5, 0.8860778),
    ],
)
def test_contrastive_loss_has_reference_values(features, y, tau, expected):
    z = torch.tensor(features, dtype=torch.float64)
    assert float(supervised_contrastive(z, torch.tensor(y), tau)) == pytest.approx(expected, rel=1e-7, abs=1e-12)
    assert float(supervised_contrastive(z.float(), torch.tensor(y), tau)) == pytest.approx(expected, rel=2e-7, abs=2e-7)


def test_contrastive_loss_agrees_with_its_definition():
    z, y = normalize_rows(normal(12, 5, dtype=torch.float64)), [0, 1, 2, 0, 1, 0, 0, 3, 1, 2, 0, 4]
    assert float(supervised_contrastive(z, torch.tensor(y), 0.07)) == pytest.approx(by_hand(z, y, 0.07), rel=1e-10)


def test_contrastive_loss_is_invariant_to_permutations_and_row_shifts():
    z, y = normalize_rows(normal(12, 5, dtype=torch.float64)), labels(12)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    whole = supervised_contrastive(z, y, 0.07)
    assert torch.allclose(supervised_contrastive(z[order], y[order], 0.07), whole, rtol=1e-12)
    logits = z @ z.T / 0.07
    shifted = logits + 1000 * torch.arange(12, dtype=torch.float64)[:, None]
    assert torch.allclose(contrastive_from_logits(shifted, y), whole, rtol=1e-9)
    assert torch.allclose(
        contrastive_from_logits(logits + torch.diag(normal(12, dtype=torch.float64)), y), whole, rtol=1e-12
    )


def test_contrastive_gradient_agrees_with_finite_differences():
    z = normalize_rows(normal(7, 3, dtype=torch.float64)).requires_grad_()
    y = torch.tensor([0, 1, 0, 2, 1, 0, 3])
    assert torch.autograd.gradcheck(lambda z: supervised_contrastive(z, y, 0.3), (z,))


def test_half_precision_is_computed_in_fp32():
    z, y = normalize_rows(normal(64, 32)), labels(64)
    exact = supervised_contrastive(z, y)
    rounded = supervised_contrastive(z.half().float(), y)
    assert supervised_contrastive(z.half(), y).dtype == torch.float32
    assert torch.equal(supervised_contrastive(z.half(), y), rounded)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(supervised_contrastive(z, y), exact)
        assert normalize_rows(z.bfloat16()).dtype == torch.float32


def test_total_loss_is_finite_in_half_precision():
    logits, features, y, y_v = batch()
    with torch.autocast("cpu", dtype=torch.float16):
        half = VHLLoss(C)(logits.half() * 1000, features.half() * 1000, y, y_v)
    whole = VHLLoss(C)(logits.half().float() * 1000, features, y, y_v)
    assert half.total.dtype == torch.float32
    assert half.total.item() == pytest.approx(whole.total.item(), rel=1e-2)


@pytest.mark.parametrize("count", [0, 1])
def test_contrastive_loss_of_fewer_than_two_samples_is_zero(count):
    z = torch.ones(count, 3, requires_grad=True)
    loss = supervised_contrastive(z, torch.zeros(count, dtype=torch.int64))
    loss.backward()
    assert float(loss.detach()) == 0
    assert not z.grad.any()


def test_zero_features_give_a_finite_loss_and_no_gradient():
    x = normal(6, 3)
    x[2] = 0
    x.requires_grad_()
    loss = supervised_contrastive(normalize_rows(x), torch.tensor([0, 0, 0, 1, 1, 1]))
    loss.backward()
    assert bool(torch.isfinite(loss))
    assert not x.grad[2].any()
    assert float(x.grad.abs().max()) < 100
    assert torch.allclose(normalize_rows(x)[[0, 1, 3]].norm(dim=1), torch.ones(3))
    assert not normalize_rows(x)[2].any()
    # Short rows keep their direction.
    assert torch.allclose(normalize_rows(x * 1e-9)[0], normalize_rows(x)[0], atol=1e-5)


# ---- the total loss


def test_total_loss_is_the_weighted_sum_of_its_terms():
    logits, features, y, y_v = batch()
    o = LossOptions(weight=0.5, align_weight=0.7, noise_weight=0.3, temperature=0.2)
    parts = VHLLoss(C, options=o)(logits, features, y, y_v)
    n, v = F.normalize(features[:B], dim=1), F.normalize(features[B:], dim=1)
    both = [*y.tolist(), *y_v.tolist()]
    assert parts.natural.item() == pytest.approx(F.cross_entropy(logits[:B], y).item())
    assert parts.virtual.item() == pytest.approx(F.cross_entropy(logits[B:], y_v + C).item())
    assert parts.align.item() == pytest.approx(by_hand(torch.cat([n, v]), both, 0.2), rel=1e-5)
    assert parts.noise.item() == pytest.approx(by_hand(v, y_v.tolist(), 0.2), rel=1e-5)
    whole = parts.natural + 0.5 * parts.virtual + 0.7 * parts.align + 0.3 * parts.noise
    assert parts.total.item() == pytest.approx(whole.item(), rel=1e-6)


def test_defaults_are_the_published_ones():
    o = LossOptions()
    assert (o.weight, o.align_weight, o.noise_weight, o.temperature, o.align_epochs) == (1.0, 1.0, 0.1, 0.07, 5)
    assert o.detach
    assert o.class_match
    assert (o.label_style, o.feature_map, o.gaussian_anchors) == ("extra", "none", False)
    assert VHLLoss(C).virtual_classes == C
    with pytest.raises(ValidationError):
        LossOptions(temperature=0)


def test_feature_terms_are_off_after_their_last_epoch():
    logits, features, y, y_v = batch()
    loss = VHLLoss(C, options=LossOptions(align_epochs=2))
    during, after = loss(logits, features, y, y_v, epoch=1), loss(logits, features, y, y_v, epoch=2)
    assert during.align.item() > 0
    assert during.noise.item() > 0
    assert after.align.item() == after.noise.item() == 0
    assert torch.equal(after.total, after.natural + after.virtual)


def test_detached_virtual_features_get_gradients_from_the_second_contrastive_term_only():
    for detach, noise, moved in ((True, 0.0, False), (True, 0.1, True), (False, 0.0, True)):
        logits, features, y, y_v = batch()
        o = LossOptions(weight=0, noise_weight=noise, detach=detach)
        VHLLoss(C, options=o)(logits, features, y, y_v).total.backward()
        assert bool(features.grad[:B].any())
        assert bool(features.grad[B:].any()) == moved


@pytest.mark.parametrize("kept", [B - 2, B_V])
def test_domain_term_is_the_mean_distance_of_pairs_regardless_of_classes(kept):
    logits, features, y, y_v = batch()
    logits, features, y_v = logits[: B + kept], features[: B + kept], y_v[:kept]
    parts = VHLLoss(C, options=LossOptions(domain_weight=0.3))(logits, features, y, y_v)
    pairs = [math.dist(features[i].tolist(), features[B + i].tolist()) for i in range(min(B, kept))]
    assert parts.domain.item() == pytest.approx(sum(pairs) / len(pairs), rel=1e-6)
    without = VHLLoss(C)(logits, features, y, y_v)
    assert without.domain.item() == 0
    assert (parts.total - without.total).item() == pytest.approx(0.3 * parts.domain.item(), rel=1e-5)


def test_domain_term_has_the_gradient_of_a_distance_to_detached_virtual_features():
    for detach in (True, False):
        logits, features, y, y_v = batch()
        o = LossOptions(weight=0, align_weight=0, noise_weight=0, domain_weight=1.0, detach=detach)
        loss = VHLLoss(C, options=o)
        loss(logits, features, y, y_v).total.backward()
        difference = features[:B] - features[B : 2 * B]
        expected = (difference / difference.norm(dim=1, keepdim=True) / B).detach()
        assert torch.allclose(features.grad[:B], expected, atol=1e-6)
        assert torch.allclose(features.grad[B : 2 * B], torch.zeros(B, D) if detach else -expected, atol=1e-6)
        assert loss(logits, features, y, y_v, epoch=o.align_epochs).domain.item() == 0


def test_without_feature_terms_features_get_no_gradient():
    logits, features, y, y_v = batch()
    o = LossOptions(align_weight=0, noise_weight=0)
    VHLLoss(C, options=o)(logits, features, y, y_v).total.backward()
    assert features.grad is None
    assert bool(logits.grad[B:].any())


def test_virtual_images_get_no_gradient_from_alignment_alone():
    """With batch norm in evaluation mode, only the feature terms connect the two halves."""
    model = build("conv3", C, 1, seed=3).eval()
    widen_head(model, C, seed=3)
    gradients = {}
    for noise in (0.0, 0.1):
        x, x_v = normal(B, 1, 8, 8, seed=1), normal(B_V, 1, 8, 8, seed=2).requires_grad_()
        logits, features = model(torch.cat([x, x_v]))
        loss = VHLLoss(C, options=LossOptions(weight=0, noise_weight=noise))
        loss(logits, features, labels(B, 3), labels(B_V, 4)).total.backward()
        gradients[noise] = x_v.grad
    assert not gradients[0.0].any()
    assert bool(gradients[0.1].any())


def test_virtual_cross_entropy_increases_the_outputs_of_the_virtual_classes():
    logits, features, y, y_v = batch()
    parts = VHLLoss(C)(logits, features, y, y_v)
    parts.virtual.backward()
    pushed = logits.grad < 0
    assert not pushed[:, :C].any()
    assert torch.equal(pushed[B:].int().argmax(1), y_v + C)
    assert torch.equal(pushed[B:].sum(1), torch.ones(B_V, dtype=torch.int64))
    assert not logits.grad[:B].any()


@pytest.mark.parametrize("virtual_classes", [2, 7])
def test_virtual_outputs_follow_the_natural_ones_for_any_number_of_classes(virtual_classes):
    loss = VHLLoss(C, virtual_classes)
    assert loss.outputs == C + virtual_classes
    y_v = torch.arange(virtual_classes)
    assert loss.virtual_targets(y_v).tolist() == list(range(C, C + virtual_classes))
    apart = VHLLoss(C, virtual_classes, LossOptions(class_match=False, noise_weight=0, weight=0, temperature=0.5))
    features, y = normal(C + virtual_classes, D, seed=2), torch.arange(C)
    logits = normal(C + virtual_classes, C + virtual_classes, seed=1)
    # No two samples share a label, so no anchor has positives.
    assert apart(logits, features, y, y_v).align.item() == 0


def test_label_style_patch_uses_the_natural_outputs():
    logits, features, y, y_v = batch(C)
    loss = VHLLoss(C, options=LossOptions(label_style="patch"))
    assert loss.outputs == C
    assert loss(logits, features, y, y_v).virtual.item() == pytest.approx(F.cross_entropy(logits[B:], y_v).item())
    assert VHLLoss(C, 3, LossOptions(label_style="patch")).outputs == C
    with pytest.raises(ConfigError, match="5 virtual classes"):
        VHLLoss(C, 5, LossOptions(label_style="patch"))


def test_without_class_match_virtual_classes_are_negatives_of_all_natural_ones():
    logits, features, y, y_v = batch()
    o = LossOptions(class_match=False, temperature=0.5)
    unit = normalize_rows(features.detach())
    apart = [*y.tolist(), *(y_v + C).tolist()]
    assert VHLLoss(C, options=o)(logits, features, y, y_v).align.item() == pytest.approx(
        by_hand(unit, apart, 0.5), rel=1e-5
    )
    matched = VHLLoss(C, options=LossOptions(temperature=0.5))(logits, features, y, y_v)
    assert abs(matched.align.item() - by_hand(unit, apart, 0.5)) > 0.1


@pytest.mark.parametrize("detach", [True, False])
def test_a_descent_step_moves_natural_features_toward_virtual_ones_of_their_class(detach):
    logits, features, _, _ = batch()
    y, y_v = torch.arange(B) % C, torch.arange(B_V) % C
    loss = VHLLoss(C, options=LossOptions(weight=0, noise_weight=0, temperature=0.5, detach=detach))
    loss(logits, features, y, y_v).align.backward()

    def alignment(f: torch.Tensor) -> float:
        cosines = normalize_rows(f[:B]) @ normalize_rows(f[B:]).T
        same = y[:, None] == y_v[None]
        return float(cosines[same].mean() - cosines[~same].mean())

    assert alignment(features.detach() - 2 * features.grad) > alignment(features.detach()) + 0.03


# ---- replacements for virtual features


@pytest.mark.parametrize("kind", ["random", "orthogonal"])
def test_feature_map_is_applied_to_virtual_features_in_the_alignment_only(kind):
    logits, features, y, y_v = batch()
    o = LossOptions(feature_map=kind, temperature=0.3)
    parts = VHLLoss(C, options=o, seed=5)(logits, features, y, y_v)
    mapped = torch.cat([features[:B], features[B:] @ feature_map(kind, D, 5)]).detach()
    both = [*y.tolist(), *y_v.tolist()]
    assert parts.align.item() == pytest.approx(by_hand(normalize_rows(mapped), both, 0.3), rel=1e-5)
    plain = VHLLoss(C, options=LossOptions(temperature=0.3))(logits, features, y, y_v)
    assert abs((plain.align - parts.align).item()) > 0.01
    assert torch.equal(plain.noise, parts.noise)
    assert torch.equal(VHLLoss(C, options=o, seed=5)(logits, features, y, y_v).align, parts.align)
    assert not torch.equal(VHLLoss(C, options=o, seed=6)(logits, features, y, y_v).align, parts.align)


def test_orthogonal_map_preserves_angles_and_random_map_approximately_preserves_norms():
    q = feature_map("orthogonal", 64, 1)
    assert torch.allclose(q @ q.T, torch.eye(64), atol=1e-5)
    x = normal(200, 64)
    lengths = (x @ feature_map("random", 64, 1)).norm(dim=1) / x.norm(dim=1)
    assert float(lengths.mean()) == pytest.approx(1, abs=0.05)
    assert float(lengths.std()) > 0.02


def test_gaussian_anchors_need_no_images():
    logits, features, y, y_v = batch(C)
    loss = VHLLoss(C, options=LossOptions(gaussian_anchors=True, temperature=0.2), seed=3)
    drawn = draw_anchors(anchor_means(C, D, 3), y_v, torch.Generator().manual_seed(9))
    generator = torch.Generator().manual_seed(9)
    parts = loss(logits[:B], features[:B], y, y_v, generator=generator)
    z = torch.cat([normalize_rows(features[:B].detach()), normalize_rows(drawn)])
    assert parts.align.item() == pytest.approx(by_hand(z, [*y.tolist(), *y_v.tolist()], 0.2), rel=1e-5)
    assert parts.virtual.item() == parts.noise.item() == 0
    again = loss(logits[:B], features[:B], y, y_v, generator=generator)
    assert not torch.equal(again.align, parts.align)
    with pytest.raises(ConfigError, match="generator"):
        loss(logits[:B], features[:B], y, y_v)


def test_gaussian_anchors_are_close_to_means_in_the_unit_cube():
    means = anchor_means(10, 512, 0)
    assert 0 <= float(means.min()) < 0.01
    assert 0.99 < float(means.max()) <= 1
    assert torch.equal(means, anchor_means(10, 512, 0))
    y_v = torch.arange(10).repeat(20)
    noise = draw_anchors(means, y_v, torch.Generator().manual_seed(1)) - means[y_v]
    assert float(noise.std()) == pytest.approx(0.05, rel=0.01)
    assert abs(float(noise.mean())) < 1e-3


# ---- one step


def test_without_virtual_terms_a_step_is_that_of_fedavg():
    """The gradients equal those of training a head with the same outputs without virtual data."""
    model = build("conv3", C, 1, norm="group", seed=3)
    widen_head(model, C, seed=3)
    plain = copy.deepcopy(model)
    x, x_v, y, y_v = normal(B, 1, 8, 8, seed=1), normal(B_V, 1, 8, 8, seed=2), labels(B, 3), labels(B_V, 4)
    off = VHLLoss(C, options=LossOptions(weight=0, align_weight=0, noise_weight=0))
    off(*model(torch.cat([x, x_v])), y, y_v).total.backward()
    F.cross_entropy(plain(x)[0], y).backward()
    for parameter, reference in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(parameter.grad, reference.grad, atol=1e-7)
    assert float(model.linear.weight.grad[:C].abs().max()) > 1e-3


def test_terms_of_weight_zero_do_not_propagate_nan():
    logits, features, y, y_v = batch()
    bad = torch.cat([features[:B], torch.full((B_V, D), torch.nan)])
    o = LossOptions(align_weight=0, noise_weight=0)
    assert bool(torch.isfinite(VHLLoss(C, options=o)(logits, bad, y, y_v).total))


def test_batches_with_inconsistent_shapes_are_refused():
    logits, features, y, y_v = batch()
    with pytest.raises(ConfigError, match="14 logits"):
        VHLLoss(C)(logits, features, y, y_v[:-1])
    with pytest.raises(ConfigError, match="8 outputs, the loss needs 7"):
        VHLLoss(C, 3)(logits, features, y, y_v)
    with pytest.raises(ConfigError, match="needs 4"):
        VHLLoss(C, options=LossOptions(label_style="patch"))(logits, features, y, y_v)
