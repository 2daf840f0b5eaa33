"""Images are varied and scaled as published, batch by batch, and from a seed alone."""

from __future__ import annotations

import pytest
import torch

from farshore.core.errors import ConfigError
from farshore.data.image_transforms import MATCHED, PAD, crop_and_flip, cut_out, recipes, resized


def images(count: int = 64, channels: int = 3, size: int = 32) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(1, 256, (count, channels, size, size), generator=draw).to(torch.uint8)


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def turned(x: torch.Tensor, flip: bool) -> torch.Tensor:
    return x.flip(-1) if flip else x


def test_each_image_is_one_of_its_shifts_mirrored_or_not() -> None:
    x = images(count=40, size=6)
    padded = torch.nn.functional.pad(x, (PAD,) * 4)
    found = []
    for i, varied in enumerate(crop_and_flip(x, seeded())):
        places = [
            (top, left, flip)
            for top in range(2 * PAD + 1)
            for left in range(2 * PAD + 1)
            for flip in (False, True)
            if torch.equal(varied, turned(padded[i, :, top : top + 6, left : left + 6], flip))
        ]
        assert places, i
        found.append(places[0])
    assert {flip for *_, flip in found} == {False, True}
    assert len({(top, left) for top, left, _ in found}) > 20  # each image has a place of its own


def test_cutout_blacks_a_square_around_a_pixel_that_may_stick_out() -> None:
    cut = cut_out(torch.ones(200, 2, 32, 32), 16, seeded()) == 0
    assert torch.equal(cut[:, 0], cut[:, 1])
    rows, columns = cut[:, 0].any(2).sum(1), cut[:, 0].any(1).sum(1)
    assert torch.equal(cut[:, 0].sum((1, 2)), rows * columns)
    assert (rows.min(), rows.max()) == (8, 16)
    assert columns.max() == 16


def test_official_scales_are_the_published_ones() -> None:
    x = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    natural, virtual = recipes("cifar10", "official", "none")
    white = (1 - torch.tensor([0.4914, 0.4822, 0.4465])) / torch.tensor([0.2470, 0.2435, 0.2616])
    assert torch.allclose(natural(x)[0, :, 0, 0], white)
    assert virtual(x).unique().tolist() == [2.0]
    for name in ("fmnist", "svhn"):
        natural, virtual = recipes(name, "official", "official")
        assert natural(x, seeded()).unique().tolist() == [1.0]
        assert virtual(x).unique().tolist() == [2.0]
    assert recipes("digits", "matched", "none") == (MATCHED, MATCHED)


def test_what_is_random_comes_from_the_generator_and_only_in_training() -> None:
    natural, virtual = recipes("cifar100", "official", "official")
    x = images()
    assert torch.equal(natural(x, seeded(1)), natural(x, seeded(1)))
    assert not torch.equal(natural(x, seeded(1)), natural(x, seeded(2)))
    assert not torch.equal(virtual(x, seeded(1)), virtual(x))
    assert (natural(x, seeded()) == 0).sum() > 50 * len(x)
    assert (natural.cutout, virtual.cutout) == (16, 0)
    assert torch.equal(natural(x), natural(x))
    still, _ = recipes("cifar100", "official", "none")
    assert torch.equal(still(x, seeded()), natural(x))


def test_small_images_are_enlarged_to_bytes() -> None:
    x = images(channels=1, size=28)
    large = resized(x, 32)
    assert (large.dtype, tuple(large.shape)) == (torch.uint8, (64, 1, 32, 32))
    assert abs(float(large.float().mean() - x.float().mean())) < 1
    assert resized(x, 28) is x


def test_a_data_set_without_a_published_recipe_is_refused() -> None:
    with pytest.raises(ConfigError, match="no official recipe"):
        recipes("digits", "official", "none")
