"""Image transforms: published normalization and augmentation, deterministic given a generator."""

from __future__ import annotations

import pytest
import torch

from farshore.core.errors import ConfigError
from farshore.data.image_transforms import MATCHED, PAD, crop_and_flip, cut_out, image_transforms, resize_images


def images(count: int = 64, channels: int = 3, size: int = 32) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(1, 256, (count, channels, size, size), generator=draw).to(torch.uint8)


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def flipped(x: torch.Tensor, flip: bool) -> torch.Tensor:
    return x.flip(-1) if flip else x


def test_each_augmented_image_is_a_shift_of_the_original_flipped_or_not() -> None:
    x = images(count=40, size=6)
    padded = torch.nn.functional.pad(x, (PAD,) * 4)
    found = []
    for i, augmented in enumerate(crop_and_flip(x, seeded())):
        places = [
            (top, left, flip)
            for top in range(2 * PAD + 1)
            for left in range(2 * PAD + 1)
            for flip in (False, True)
            if torch.equal(augmented, flipped(padded[i, :, top : top + 6, left : left + 6], flip))
        ]
        assert places, i
        found.append(places[0])
    assert {flip for *_, flip in found} == {False, True}
    assert len({(top, left) for top, left, _ in found}) > 20  # shifts are drawn per image


def test_cutout_zeroes_a_square_that_may_extend_beyond_the_image() -> None:
    cut = cut_out(torch.ones(200, 2, 32, 32), 16, seeded()) == 0
    assert torch.equal(cut[:, 0], cut[:, 1])
    rows, columns = cut[:, 0].any(2).sum(1), cut[:, 0].any(1).sum(1)
    assert torch.equal(cut[:, 0].sum((1, 2)), rows * columns)
    assert (rows.min(), rows.max()) == (8, 16)
    assert columns.max() == 16


def test_official_normalization_uses_the_published_statistics() -> None:
    x = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    natural, virtual = image_transforms("cifar10", "official", "none")
    white = (1 - torch.tensor([0.4914, 0.4822, 0.4465])) / torch.tensor([0.2470, 0.2435, 0.2616])
    assert torch.allclose(natural(x)[0, :, 0, 0], white)
    assert virtual(x).unique().tolist() == [2.0]
    for name in ("fmnist", "svhn"):
        natural, virtual = image_transforms(name, "official", "official")
        assert natural(x, seeded()).unique().tolist() == [1.0]
        assert virtual(x).unique().tolist() == [2.0]
    assert image_transforms("digits", "matched", "none") == (MATCHED, MATCHED)


def test_augmentation_depends_on_the_generator_and_is_off_without_one() -> None:
    natural, virtual = image_transforms("cifar100", "official", "official")
    x = images()
    assert torch.equal(natural(x, seeded(1)), natural(x, seeded(1)))
    assert not torch.equal(natural(x, seeded(1)), natural(x, seeded(2)))
    assert not torch.equal(virtual(x, seeded(1)), virtual(x))
    assert (natural(x, seeded()) == 0).sum() > 50 * len(x)
    assert (natural.cutout, virtual.cutout) == (16, 0)
    assert torch.equal(natural(x), natural(x))
    still, _ = image_transforms("cifar100", "official", "none")
    assert torch.equal(still(x, seeded()), natural(x))


def test_resized_images_are_bytes() -> None:
    x = images(channels=1, size=28)
    large = resize_images(x, 32)
    assert (large.dtype, tuple(large.shape)) == (torch.uint8, (64, 1, 32, 32))
    assert abs(float(large.float().mean() - x.float().mean())) < 1
    assert resize_images(x, 28) is x


def test_official_transform_of_an_unknown_data_set_is_refused() -> None:
    with pytest.raises(ConfigError, match="no official image transform"):
        image_transforms("digits", "official", "none")
