"""Virtual data: equal on every machine for a seed, separable by class, made by the published generators."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from pydantic import ValidationError

from farshore.algorithms.vhl.conv_decoder import ConvDecoder, diverse_decoder, gram_penalty
from farshore.algorithms.vhl.noise import noise_images, upsample
from farshore.algorithms.vhl.stylegan2 import ModulatedConvolution, StyleGAN2, upsample2x
from farshore.algorithms.vhl.virtual import VirtualData, VirtualRecipe, quantize
from farshore.core.errors import DataError

#: Digest of 2 x 2 gray images of 8x8 pixels with seed 7; if it changes, nodes of different versions disagree.
GOLDEN = "9021a0c81bd2f8e5d0ab7d95f5f29fcd82b6079dd43d594c1295351d6e5cee30"
GOLDEN_RECIPE = VirtualRecipe(classes=2, per_class=2, channels=1, size=8, seed=7)


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def nearest_centroid(data: VirtualData) -> float:
    """Leave-one-out nearest-centroid accuracy: class means exclude the image that is classified."""
    classes, m = data.recipe.classes, data.recipe.per_class
    x = data.floats().flatten(1)
    distance = torch.cdist(x, x.view(classes, m, -1).mean(dim=1))
    distance[torch.arange(len(x)), data.labels] *= m / (m - 1)
    return float((distance.argmin(dim=1) == data.labels).float().mean())


# ---- the set


def test_a_small_set_has_its_reference_digest():
    assert VirtualData.from_recipe(GOLDEN_RECIPE).digest == GOLDEN


def test_upsampled_noise_agrees_with_pytorchs_interpolation():
    random = np.random.RandomState([7, 0])
    classes = []
    for _ in range(2):
        mean = random.standard_normal((1, 4, 4))
        classes.append(torch.from_numpy(mean + 0.5 * random.standard_normal((2, 1, 4, 4))))
    enlarged = F.interpolate(torch.cat(classes), size=8, mode="bilinear", align_corners=False)
    expected = (enlarged.clamp(0, 1) * 255).round().to(torch.uint8)
    assert torch.equal(VirtualData.from_recipe(GOLDEN_RECIPE).images, expected)


def test_the_digest_depends_on_the_seed():
    recipe = VirtualRecipe(per_class=3, seed=1)
    data = VirtualData.from_recipe(recipe)
    assert data.digest == VirtualData.from_recipe(VirtualRecipe(per_class=3, seed=1)).digest
    assert data.digest == hashlib.sha256(data.images.numpy().tobytes()).hexdigest()
    others = [VirtualRecipe(per_class=3, seed=seed) for seed in (0, 2, 1 + (1 << 32))]
    assert len({data.digest, *(VirtualData.from_recipe(r).digest for r in others)}) == 4


def test_generators_do_not_use_global_random_state():
    def state() -> tuple[bytes, bytes]:
        return torch.get_rng_state().numpy().tobytes(), np.random.get_state()[1].tobytes()

    before = state()
    VirtualData.from_recipe(GOLDEN_RECIPE)
    StyleGAN2(8, 8, seed=1)(torch.zeros(1, 8), torch.Generator().manual_seed(1))
    diverse_decoder(4, 4, 1, 1, width=8, steps=1)
    assert state() == before


def test_every_class_has_its_images_and_labels():
    data = VirtualData.from_recipe(VirtualRecipe(classes=5, per_class=7, channels=1, size=16))
    assert data.images.shape == (35, 1, 16, 16)
    assert data.images.dtype == torch.uint8
    assert data.labels.dtype == torch.int64
    assert data.labels.bincount().tolist() == [7] * 5
    assert data.labels.tolist() == sorted(data.labels.tolist())
    assert (int(data.images.min()), int(data.images.max())) == (0, 255)
    assert data.recipe.nbytes == 35 * 256
    assert VirtualRecipe(per_class=200).nbytes == 6_144_000  # docs/methods/vhl.md, section 7
    assert VirtualRecipe(per_class=5000).nbytes == 153_600_000


@pytest.mark.parametrize(("size", "channels"), [(32, 3), (8, 1)])
def test_classes_of_noise_are_separable(size, channels):
    assert nearest_centroid(VirtualData.from_recipe(VirtualRecipe(per_class=40, size=size, channels=channels))) > 0.95


def test_upsampled_noise_has_the_expected_statistics():
    raw = np.concatenate([np.concatenate(list(noise_images(VirtualRecipe(per_class=20, seed=s)))) for s in range(8)])
    # Interpolation reduces the variance 1 + 0.5² to 0.699 of it per axis; one seed deviates by up to 0.02.
    assert raw.std() == pytest.approx((1.25 * 0.69922**2) ** 0.5, abs=0.02)
    assert abs(raw.mean()) < 0.03
    assert (raw < 0).mean() == pytest.approx(0.49, abs=0.03)
    assert (raw > 1).mean() == pytest.approx(0.10, abs=0.015)


def test_classes_without_class_means_are_not_separable():
    data = VirtualData.from_recipe(VirtualRecipe(per_class=40, class_scale=0.0))
    assert nearest_centroid(data) < 0.2


def test_images_are_clamped_not_rescaled_and_rounded_half_to_even():
    raw = np.array([-3.0, 0.0, 0.5 / 255, 1.5 / 255, 2.5 / 255, 0.5, 1.0, 7.0])
    assert quantize(raw).tolist() == [0, 0, 0, 2, 2, 128, 255, 255]
    assert quantize(raw).dtype == np.uint8


@pytest.mark.parametrize(("old", "new"), [(4, 8), (4, 16), (8, 32), (5, 13), (8, 8)])
def test_upsampling_is_bilinear_with_pixel_centers(old, new):
    x = np.random.default_rng(0).standard_normal((2, 3, old, old))
    expected = F.interpolate(torch.from_numpy(x), size=new, mode="bilinear", align_corners=False)
    assert np.abs(upsample(x, new) - expected.numpy()).max() < 1e-14


def test_images_are_centered_and_scaled_for_the_model():
    data = VirtualData.from_recipe(GOLDEN_RECIPE)
    rows = torch.tensor([3, 1])
    assert torch.allclose(data.floats(rows), (data.images[rows] / 255 - 0.5) / 0.25)
    assert data.floats().dtype == torch.float32
    assert (float(data.floats().min()), float(data.floats().max())) == (-2.0, 2.0)


def test_images_that_do_not_match_recipe_or_digest_are_refused():
    data = VirtualData.from_recipe(GOLDEN_RECIPE)
    data.verify(GOLDEN)
    changed = data.images.clone()
    changed[3, 0, 7, 7] ^= 1
    with pytest.raises(DataError, match=f"not {GOLDEN[:12]}"):
        VirtualData(changed, GOLDEN_RECIPE).verify(GOLDEN)
    with pytest.raises(DataError, match="recipe says"):
        VirtualData(data.images[:3], GOLDEN_RECIPE)
    with pytest.raises(DataError, match="float32"):
        VirtualData(data.images.float(), GOLDEN_RECIPE)
    shipped = VirtualData(data.images.transpose(2, 3).contiguous().transpose(2, 3), GOLDEN_RECIPE)
    assert shipped.digest == GOLDEN
    assert shipped.images.is_contiguous()


# ---- the recipe


@pytest.mark.parametrize(
    ("classes", "generator", "latent", "class_scale", "sample_scale", "per_class"),
    [
        (10, "stylegan2", 64, 0.5, 0.3, 200),
        (100, "stylegan2", 256, 0.5, 0.2, 500),
        (200, "stylegan2", 256, 0.5, 0.15, 250),
        (10, "conv_decoder", 8, 0.0, 1.0, 200),
        (10, "upsampled_noise", 8, 1.0, 0.5, 200),
    ],
)
def test_omitted_fields_of_a_recipe_get_the_published_values(
    classes, generator, latent, class_scale, sample_scale, per_class
):
    recipe = VirtualRecipe(classes=classes, generator=generator)
    assert (recipe.latent, recipe.class_scale, recipe.sample_scale) == (latent, class_scale, sample_scale)
    assert recipe.per_class == per_class
    assert VirtualRecipe.model_validate_json(recipe.model_dump_json()) == recipe
    assert VirtualRecipe(classes=classes, generator=generator, sample_scale=0.1).sample_scale == 0.1


def test_the_noise_grid_has_a_quarter_of_the_size_but_at_least_four():
    assert [VirtualRecipe(size=s).latent for s in (8, 16, 28, 32, 64)] == [4, 4, 7, 8, 16]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"generator": "stylegan2", "size": 28}, "size of stylegan2"),
        ({"generator": "conv_decoder", "size": 30}, "multiple of 4"),
        ({"size": 8, "latent": 9}, "cannot be upsampled"),
        ({"classes": 1000, "per_class": 100_000}, "4 GiB"),
        ({"classes": 0}, "classes"),
        ({"per_class": 0}, "per_class"),
        ({"classes": "many"}, "classes"),
        ({"sample_scale": -1.0}, "sample_scale"),
        ({"sample_scale": math.nan}, "sample_scale"),
        ({"seed": -1}, "seed"),
        ({"generator": "gan"}, "generator"),
        ({"style": 3}, "style"),
    ],
)
def test_invalid_recipes_are_refused(wrong: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=message):
        VirtualRecipe(**wrong)


# ---- stylegan2


def test_generator_networks_have_the_published_sizes():
    assert parameters(StyleGAN2(seed=0)) == 16_903_251
    assert parameters(ConvDecoder()) == 434_179


def test_modulated_convolution_equals_a_convolution_with_per_sample_weights():
    generator = torch.Generator().manual_seed(0)
    layer = ModulatedConvolution(6, 5, 7, 3, generator).requires_grad_(False)
    x, style = torch.randn(3, 5, 8, 8, generator=generator), torch.randn(3, 6, generator=generator)
    modulation = style @ (layer.style_weight / 6**0.5).T + layer.style_bias
    for i in range(3):
        weight = layer.weight / 45**0.5 * modulation[i][None, :, None, None]
        plain = F.conv2d(x[i : i + 1], weight, padding=1)
        assert torch.allclose(layer(x, style, demodulate=False)[i : i + 1], plain, atol=1e-5)
        weight = weight / weight.square().sum(dim=(1, 2, 3), keepdim=True).add(1e-8).sqrt()
        assert torch.allclose(layer(x, style)[i : i + 1], F.conv2d(x[i : i + 1], weight, padding=1), atol=1e-5)
    assert layer(x, style, upsample=True).shape == (3, 7, 16, 16)


def test_upsampled_maps_are_smooth_and_keep_their_mean():
    flat = upsample2x(torch.ones(1, 2, 6, 6))
    assert flat.shape == (1, 2, 12, 12)
    assert torch.allclose(flat[:, :, 1:-1, 1:-1], torch.ones(1, 2, 10, 10))
    point = torch.zeros(1, 1, 5, 5)
    point[0, 0, 2, 2] = 1
    line = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 4
    assert torch.allclose(upsample2x(point)[0, 0, 3:7, 3:7], torch.outer(line, line))
    assert float(upsample2x(point).sum()) == pytest.approx(4)


def test_stylegan2_images_differ_by_style_only():
    network = StyleGAN2(16, 8, 1, seed=1)
    z = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    images = network(z)
    assert images.shape == (2, 1, 8, 8)
    assert not torch.allclose(images[0], images[1], atol=0.1)
    # The norm of z has no effect (pixel norm), and the untrained noise strength is zero.
    assert torch.allclose(network(3 * z), images, atol=1e-4)
    assert torch.equal(network(z, torch.Generator().manual_seed(1)), images)
    network.first.noise_strength.fill_(1)
    assert not torch.allclose(network(z, torch.Generator().manual_seed(1)), images, atol=0.1)
    assert torch.equal(StyleGAN2(16, 8, 1, seed=1)(z), images)
    assert not torch.allclose(StyleGAN2(16, 8, 1, seed=2)(z), images, atol=0.1)


@pytest.mark.slow
def test_raw_stylegan2_images_have_the_expected_statistics():
    """The reference values are from one network; eight networks with other seeds scatter around them."""
    raw = []
    for seed in range(8):
        z = torch.randn(4, 64, generator=torch.Generator().manual_seed(100 + seed))
        raw.append(StyleGAN2(seed=seed)(z))
    x = torch.stack(raw).flatten(1)
    reference = {"mean": -0.3, "deviation": 1.2, "black": 0.60, "white": 0.12}
    black, white = (x <= 0).float().mean(dim=1), (x >= 1).float().mean(dim=1)
    seen = {"mean": x.mean(dim=1), "deviation": x.std(dim=1), "black": black, "white": white}
    assert all(float(seen[k].min()) < reference[k] < float(seen[k].max()) for k in reference)
    assert float(x.std()) == pytest.approx(1.47, abs=0.1)
    assert float(black.median()) == pytest.approx(0.55, abs=0.1)
    assert float(white.median()) == pytest.approx(0.15, abs=0.1)


@pytest.mark.slow
def test_classes_of_stylegan2_are_separable_and_more_so_with_less_spread():
    recipe = VirtualRecipe(generator="stylegan2", per_class=20, seed=1)
    data = VirtualData.from_recipe(recipe)
    assert nearest_centroid(data) > 0.8
    tight = VirtualData.from_recipe(recipe.model_copy(update={"sample_scale": 0.1}))
    assert nearest_centroid(tight) > 0.98
    assert data.digest != tight.digest


# ---- conv_decoder


def test_decoder_maps_have_the_published_heights():
    sides = []
    x = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    for layer in ConvDecoder():
        x = layer(x)
        if x.dim() == 4 and (not sides or sides[-1] != x.shape[-1]):
            sides.append(x.shape[-1])
    assert sides == [8, 10, 20, 22, 44, 46, 48, 44, 40, 36, 32]
    assert x.shape == (2, 3, 32, 32)
    assert float(x.detach().abs().max()) < 1
    assert ConvDecoder(8, 16, 8, 1)(torch.zeros(2, 8)).shape == (2, 1, 8, 8)


def test_gram_penalty_is_the_mean_square_of_off_diagonal_entries():
    images = torch.randn(5, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = 0.0
    for channel in range(2):
        x = images[:, channel].flatten(1)
        x = x / x.norm(dim=1, keepdim=True)
        gram = (x.T @ x).fill_diagonal_(0)
        expected += float(gram.square().sum()) / 64**2 / 4
    assert float(gram_penalty(images)) == pytest.approx(expected, rel=1e-5)
    assert float(gram_penalty(torch.ones(5, 2, 8, 8))) > 5 * expected


def test_diversity_steps_lower_the_gram_penalty():
    z = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    start, later = (diverse_decoder(8, 4, 1, 3, width=8, steps=steps) for steps in (0, 50))
    first, last = (float(gram_penalty(d.train()(z))) for d in (start, later))
    assert last < first


def test_diversity_steps_are_plain_gradient_descent():
    start, later = (diverse_decoder(8, 4, 1, 3, width=8, steps=steps) for steps in (0, 3))
    start.train().requires_grad_(True)
    generator = torch.Generator().manual_seed(3 ^ 1)
    for _ in range(3):
        weights = list(start.parameters())
        slopes = torch.autograd.grad(gram_penalty(start(torch.randn(64, 8, generator=generator))), weights)
        with torch.no_grad():
            for weight, slope in zip(weights, slopes, strict=True):
                weight -= 0.01 * slope
    for parameter, reference in zip(later.parameters(), start.parameters(), strict=True):
        assert torch.allclose(parameter, reference, atol=1e-7)
    fresh = diverse_decoder(8, 4, 1, 3, width=8, steps=0)
    assert max(float((a - b).abs().max()) for a, b in zip(later.parameters(), fresh.parameters(), strict=True)) > 1e-5


def test_decoder_depends_on_its_seed_only():
    z = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    decoder = diverse_decoder(8, 4, 1, 3, width=8, steps=2)
    assert not decoder.training
    assert torch.equal(diverse_decoder(8, 4, 1, 3, width=8, steps=2)(z), decoder(z))
    assert not torch.equal(diverse_decoder(8, 4, 1, 4, width=8, steps=2)(z), decoder(z))


@pytest.mark.slow
def test_classes_of_conv_decoder_are_separable():
    """With a shared decoder the accuracy would be 0.5; with one per class it is about 0.76."""
    data = VirtualData.from_recipe(VirtualRecipe(generator="conv_decoder", classes=2, per_class=40, channels=1, size=8))
    assert nearest_centroid(data) > 0.65
    assert int(data.images.max()) > 20
