"""Batches of images by step and rank, drawn from one permutation per epoch that all ranks share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ...core.seeds import Seed
from ...data.image_set import ImageSet
from ...data.image_transforms import crop_and_flip
from .nested import device_of


class Batches:
    """Batches of a training set.

    An epoch is one permutation of the training set; each step takes the next ``batch`` images for each rank, so that no
    image is seen twice in an epoch. A step repeated with the same number of ranks sees the same images. With fewer
    ranks an epoch has more steps.

    Parameters
    ----------
    data : ImageSet
    batch : int
        Images per step and rank.
    seed : Seed
    limit : int
        Use only the first ``limit`` images; 0: all.
    augment : bool
        Apply random crops and horizontal flips.
    """

    def __init__(self, data: ImageSet, batch: int, seed: Seed, limit: int = 0, augment: bool = False) -> None:
        count = min(limit or len(data.labels), len(data.labels))
        self._images = torch.from_numpy(data.images[:count])
        self._labels = torch.from_numpy(data.labels[:count]).long()
        self._mean, self._deviation = _moments(self._images)
        self._batch, self._seed, self._augment = batch, seed, augment
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.long)

    def steps_per_epoch(self, ranks: int) -> int:
        """Return the steps of an epoch; images that do not fill a step of all ranks are left out."""
        return max(1, len(self._labels) // (self._batch * ranks))

    def at(self, step: int, rank: int, ranks: int) -> tuple[Tensor, Tensor]:
        """Return a rank's images (B, C, H, W) float32 and labels (B,) int64 of a step."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch(ranks))
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self._seed.child("epoch", epoch).value)
            self._epoch, self._order = epoch, torch.randperm(len(self._labels), generator=generator)
        first = (step_in_epoch * ranks + rank) * self._batch
        rows = self._order[first : first + self._batch]
        x = self.normalize(self._images[rows])
        if self._augment:
            generator = torch.Generator().manual_seed(self._seed.child("step", step, "rank", rank).value)
            x = crop_and_flip(x, generator)
        return x, self._labels[rows]

    def normalize(self, images: Tensor) -> Tensor:
        """Convert uint8 images to float32, standardized by the training set's mean and deviation of each channel."""
        return (images.float() - self._mean) / self._deviation


@torch.no_grad()
def accuracy(model: torch.nn.Module, data: ImageSet, batches: Batches, size: int = 512) -> tuple[float, float]:
    """Return the mean cross-entropy and the accuracy of a model over a whole data set."""
    device = device_of(model)
    loss, correct = 0.0, 0
    labels = torch.from_numpy(data.labels).long()
    for first in range(0, len(labels), size):
        images = batches.normalize(torch.from_numpy(data.images[first : first + size]))
        logits = model(images.to(device))
        y = labels[first : first + size].to(device)
        loss += float(functional.cross_entropy(logits, y, reduction="sum"))
        correct += int((logits.argmax(1) == y).sum())
    return loss / len(labels), correct / len(labels)


def _moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation by channel, (C, 1, 1) each."""
    channels = images.shape[1]
    values = images.transpose(0, 1).reshape(channels, -1).float()
    deviation, mean = torch.std_mean(values, dim=1)
    return mean.view(-1, 1, 1), deviation.clamp_min(1e-6).view(-1, 1, 1)
