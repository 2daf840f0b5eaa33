"""Batches of virtual images, and of labels for Gaussian anchors; all on the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ...data.image_transforms import ImageTransform


def image_batches(
    images: Tensor,
    labels: Tensor,
    size: int,
    prepare: ImageTransform,
    generator: torch.Generator,
    augmentation: torch.Generator,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield endless batches in a new random order per pass; an incomplete last batch of a pass is dropped."""
    size = min(size, len(labels))
    while True:
        order = torch.randperm(len(labels), generator=generator)
        for rows in torch.split(order[: len(order) // size * size], size):
            yield prepare(images[rows], augmentation), labels[rows]


def anchor_batches(classes: int, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, int]]:
    """Yield endless batches of labels of Gaussian anchors, each with a seed to draw the anchors."""
    while True:
        labels = torch.randint(classes, (size,), generator=generator)
        yield labels, int(torch.randint(1 << 62, (), generator=generator))
