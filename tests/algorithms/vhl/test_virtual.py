"""Virtual data: one seed is one set on every machine, classes can be told apart, generators are as published (checks 8,
9)."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from pydantic import ValidationError

from farshore.algorithms.vhl.conv_decoder import ConvDecoder, diverse_decoder, likeness
from farshore.algorithms.vhl.noise import enlarge, noise_images
from farshore.algorithms.vhl.stylegan2 import ModulatedConvolution, StyleGAN2
from farshore.algorithms.vhl.stylegan2 import enlarge as enlarge_maps
from farshore.algorithms.vhl.virtual import VirtualData, VirtualRecipe, quantize
from farshore.core.errors import DataError

#: Of 2 x 2 gray images of 8x8 pixels with seed 7: any change means that nodes of two versions disagree.
GOLDEN = "9021a0c81bd2f8e5d0ab7d95f5f29fcd82b6079dd43d594c1295351d6e5cee30"
GOLDEN_RECIPE = VirtualRecipe(classes=2, per_class=2, channels=1, size=8, seed=7)


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def nearest_centroid(data: VirtualData) -> float:
    """Share of the images that are nearest to the mean of the *other* images of their class.

    An image that counts toward its own mean finds it even where classes are all alike.
    """
    classes, m = data.recipe.classes, data.recipe.per_class
    x = data.floats().flatten(1)
    distance = torch.cdist(x, x.view(classes, m, -1).mean(dim=1))
    distance[torch.arange(len(x)), data.labels] *= m / (m - 1)
    return float((distance.argmin(dim=1) == data.labels).float().mean())


# ---- the set


def test_a_small_set_has_the_digest_it_always_had():
    assert VirtualData.from_recipe(GOLDEN_RECIPE).digest == GOLDEN


def test_upsampled_noise_is_what_the_recipe_says():
    """Another way to the same bits: PyTorch's own interpolation of the same random numbers."""
    random = np.random.RandomState([7, 0])
    classes = []
    for _ in range(2):
        mean = random.standard_normal((1, 4, 4))
        classes.append(torch.from_numpy(mean + 0.5 * random.standard_normal((2, 1, 4, 4))))
    enlarged = F.interpolate(torch.cat(classes), size=8, mode="bilinear", align_corners=False)
    expected = (enlarged.clamp(0, 1) * 255).round().to(torch.uint8)
    assert torch.equal(VirtualData.from_recipe(GOLDEN_RECIPE).images, expected)


def test_one_seed_is_one_set_and_another_seed_another():
    recipe = VirtualRecipe(per_class=3, seed=1)
    data = VirtualData.from_recipe(recipe)
    assert data.digest == VirtualData.from_recipe(VirtualRecipe(per_class=3, seed=1)).digest
    assert data.digest == hashlib.sha256(data.images.numpy().tobytes()).hexdigest()
    others = [VirtualRecipe(per_class=3, seed=seed) for seed in (0, 2, 1 + (1 << 32))]
    assert len({data.digest, *(VirtualData.from_recipe(r).digest for r in others)}) == 4


def test_making_a_set_leaves_the_global_generators_alone():
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
    assert data.recipe.nbytes == 35 * 257
    assert VirtualRecipe(per_class=200).nbytes == 6_146_000  # specification §8.1
    assert VirtualRecipe(per_class=5000).nbytes == 153_650_000


@pytest.mark.parametrize(("size", "channels"), [(32, 3), (8, 1)])
def test_classes_of_noise_can_be_told_apart(size, channels):
    assert nearest_centroid(VirtualData.from_recipe(VirtualRecipe(per_class=40, size=size, channels=channels))) > 0.95


def test_upsampled_noise_has_the_published_statistics():
    raw = np.concatenate([np.concatenate(list(noise_images(VirtualRecipe(per_class=20, seed=s)))) for s in range(8)])
    # Interpolation leaves 0.699 of the variance 1 + 0.5² per axis; one seed may be 0.02 away (0.76 is published).
    assert raw.std() == pytest.approx((1.25 * 0.69922**2) ** 0.5, abs=0.02)
    assert abs(raw.mean()) < 0.03
    assert (raw < 0).mean() == pytest.approx(0.49, abs=0.03)
    assert (raw > 1).mean() == pytest.approx(0.10, abs=0.015)


def test_classes_without_means_of_their_own_cannot_be_told_apart():
    data = VirtualData.from_recipe(VirtualRecipe(per_class=40, class_scale=0.0))
    assert nearest_centroid(data) < 0.2


def test_images_are_clamped_not_rescaled_and_halves_go_to_the_even_number():
    raw = np.array([-3.0, 0.0, 0.5 / 255, 1.5 / 255, 2.5 / 255, 0.5, 1.0, 7.0])
    assert quantize(raw).tolist() == [0, 0, 0, 2, 2, 128, 255, 255]
    assert quantize(raw).dtype == np.uint8


@pytest.mark.parametrize(("old", "new"), [(4, 8), (4, 16), (8, 32), (5, 13), (8, 8)])
def test_enlargement_is_bilinear_between_pixel_centers(old, new):
    x = np.random.default_rng(0).standard_normal((2, 3, old, old))
    expected = F.interpolate(torch.from_numpy(x), size=new, mode="bilinear", align_corners=False)
    assert np.abs(enlarge(x, new) - expected.numpy()).max() < 1e-14


def test_images_reach_the_network_centered_and_scaled():
    data = VirtualData.from_recipe(GOLDEN_RECIPE)
    rows = torch.tensor([3, 1])
    assert torch.allclose(data.floats(rows), (data.images[rows] / 255 - 0.5) / 0.25)
    assert data.floats().dtype == torch.float32
    assert (float(data.floats().min()), float(data.floats().max())) == (-2.0, 2.0)


def test_a_set_that_is_not_what_it_should_be_is_refused():
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
def test_a_recipe_fills_in_the_published_numbers(classes, generator, latent, class_scale, sample_scale, per_class):
    recipe = VirtualRecipe(classes=classes, generator=generator)
    assert (recipe.latent, recipe.class_scale, recipe.sample_scale) == (latent, class_scale, sample_scale)
    assert recipe.per_class == per_class
    assert VirtualRecipe.model_validate_json(recipe.model_dump_json()) == recipe
    assert VirtualRecipe(classes=classes, generator=generator, sample_scale=0.1).sample_scale == 0.1


def test_noise_starts_from_a_grid_of_a_quarter_but_of_four_at_least():
    assert [VirtualRecipe(size=s).latent for s in (8, 16, 28, 32, 64)] == [4, 4, 7, 8, 16]


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"generator": "stylegan2", "size": 28}, "stylegan2 makes"),
        ({"generator": "conv_decoder", "size": 30}, "multiple of 4"),
        ({"size": 8, "latent": 9}, "cannot be enlarged"),
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
def test_a_recipe_that_cannot_be_made_is_refused(wrong: dict[str, Any], what: str):
    with pytest.raises(ValidationError, match=what):
        VirtualRecipe(**wrong)


# ---- stylegan2


def test_the_networks_have_the_published_sizes():
    assert parameters(StyleGAN2(seed=0)) == 16_903_251
    assert parameters(ConvDecoder()) == 434_179


def test_a_modulated_convolution_is_one_with_weights_of_its_own_for_each_sample():
    generator = torch.Generator().manual_seed(0)
    layer = ModulatedConvolution(6, 5, 7, 3, generator).requires_grad_(False)
    x, style = torch.randn(3, 5, 8, 8, generator=generator), torch.randn(3, 6, generator=generator)
    strength = style @ (layer.style_weight / 6**0.5).T + layer.style_bias
    for i in range(3):
        weight = layer.weight / 45**0.5 * strength[i][None, :, None, None]
        plain = F.conv2d(x[i : i + 1], weight, padding=1)
        assert torch.allclose(layer(x, style, demodulate=False)[i : i + 1], plain, atol=1e-5)
        weight = weight / weight.square().sum(dim=(1, 2, 3), keepdim=True).add(1e-8).sqrt()
        assert torch.allclose(layer(x, style)[i : i + 1], F.conv2d(x[i : i + 1], weight, padding=1), atol=1e-5)
    assert layer(x, style, upsample=True).shape == (3, 7, 16, 16)


def test_enlarged_maps_keep_their_mean_and_are_smooth():
    flat = enlarge_maps(torch.ones(1, 2, 6, 6))
    assert flat.shape == (1, 2, 12, 12)
    assert torch.allclose(flat[:, :, 1:-1, 1:-1], torch.ones(1, 2, 10, 10))
    point = torch.zeros(1, 1, 5, 5)
    point[0, 0, 2, 2] = 1
    line = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 4
    assert torch.allclose(enlarge_maps(point)[0, 0, 3:7, 3:7], torch.outer(line, line))
    assert float(enlarge_maps(point).sum()) == pytest.approx(4)


def test_the_style_is_all_that_differs_between_images():
    network = StyleGAN2(16, 8, 1, seed=1)
    z = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    images = network(z)
    assert images.shape == (2, 1, 8, 8)
    assert not torch.allclose(images[0], images[1], atol=0.1)
    # Lengths are normalized away, and noise has a strength of zero until somebody trains it.
    assert torch.allclose(network(3 * z), images, atol=1e-4)
    assert torch.equal(network(z, torch.Generator().manual_seed(1)), images)
    network.first.noise_strength.fill_(1)
    assert not torch.allclose(network(z, torch.Generator().manual_seed(1)), images, atol=0.1)
    assert torch.equal(StyleGAN2(16, 8, 1, seed=1)(z), images)
    assert not torch.allclose(StyleGAN2(16, 8, 1, seed=2)(z), images, atol=0.1)


@pytest.mark.slow
def test_raw_images_of_stylegan2_have_the_published_statistics():
    """The published numbers are those of one network; networks differ, and eight of them lie around it."""
    raw = []
    for seed in range(8):
        z = torch.randn(4, 64, generator=torch.Generator().manual_seed(100 + seed))
        raw.append(StyleGAN2(seed=seed)(z))
    x = torch.stack(raw).flatten(1)
    published = {"mean": -0.3, "deviation": 1.2, "black": 0.60, "white": 0.12}
    black, white = (x <= 0).float().mean(dim=1), (x >= 1).float().mean(dim=1)
    seen = {"mean": x.mean(dim=1), "deviation": x.std(dim=1), "black": black, "white": white}
    assert all(float(seen[k].min()) < published[k] < float(seen[k].max()) for k in published)
    assert float(x.std()) == pytest.approx(1.47, abs=0.1)
    assert float(black.median()) == pytest.approx(0.55, abs=0.1)
    assert float(white.median()) == pytest.approx(0.15, abs=0.1)


@pytest.mark.slow
def test_classes_of_stylegan2_can_be_told_apart_and_the_better_the_closer_their_samples():
    recipe = VirtualRecipe(generator="stylegan2", per_class=20, seed=1)
    data = VirtualData.from_recipe(recipe)
    assert nearest_centroid(data) > 0.8
    tight = VirtualData.from_recipe(recipe.model_copy(update={"sample_scale": 0.1}))
    assert nearest_centroid(tight) > 0.98
    assert data.digest != tight.digest


# ---- conv_decoder


def test_the_decoder_passes_through_the_published_sides():
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


def test_likeness_is_the_mean_square_of_the_pixels_products():
    images = torch.randn(5, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = 0.0
    for channel in range(2):
        x = images[:, channel].flatten(1)
        x = x / x.norm(dim=1, keepdim=True)
        gram = (x.T @ x).fill_diagonal_(0)
        expected += float(gram.square().sum()) / 64**2 / 4
    assert float(likeness(images)) == pytest.approx(expected, rel=1e-5)
    assert float(likeness(torch.ones(5, 2, 8, 8))) > 5 * expected


def test_diversity_steps_make_images_less_alike():
    z = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    start, later = (diverse_decoder(8, 4, 1, 3, width=8, steps=steps) for steps in (0, 50))
    first, last = (float(likeness(d.train()(z))) for d in (start, later))
    assert last < first


def test_diversity_steps_are_plain_gradient_descent():
    start, later = (diverse_decoder(8, 4, 1, 3, width=8, steps=steps) for steps in (0, 3))
    start.train().requires_grad_(True)
    generator = torch.Generator().manual_seed(3 ^ 1)
    for _ in range(3):
        weights = list(start.parameters())
        slopes = torch.autograd.grad(likeness(start(torch.randn(64, 8, generator=generator))), weights)
        with torch.no_grad():
            for weight, slope in zip(weights, slopes, strict=True):
                weight -= 0.01 * slope
    for mine, reference in zip(later.parameters(), start.parameters(), strict=True):
        assert torch.allclose(mine, reference, atol=1e-7)
    fresh = diverse_decoder(8, 4, 1, 3, width=8, steps=0)
    assert max(float((a - b).abs().max()) for a, b in zip(later.parameters(), fresh.parameters(), strict=True)) > 1e-5


def test_a_decoder_comes_from_its_seed():
    z = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    decoder = diverse_decoder(8, 4, 1, 3, width=8, steps=2)
    assert not decoder.training
    assert torch.equal(diverse_decoder(8, 4, 1, 3, width=8, steps=2)(z), decoder(z))
    assert not torch.equal(diverse_decoder(8, 4, 1, 4, width=8, steps=2)(z), decoder(z))


@pytest.mark.slow
def test_decoders_of_two_classes_make_two_kinds_of_images():
    """One decoder for both would leave the accuracy at a half; the means of two overlap, and it is about 0.76."""
    data = VirtualData.from_recipe(VirtualRecipe(generator="conv_decoder", classes=2, per_class=40, channels=1, size=8))
    assert nearest_centroid(data) > 0.65
    assert int(data.images.max()) > 20
