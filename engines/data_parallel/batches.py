"""Which images a rank sees at a step: one order for all ranks, so that none is seen twice in an epoch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ...core.seeds import Seed
from ...data.image_set import ImageSet
from ...data.image_transforms import crop_and_flip


class Batches:
    """Batches of a training set.

    An epoch is one permutation; step ``t`` takes the next ``batch`` images for each rank. Where ranks are lost the
    epochs get longer in steps, but a step that is repeated after a restart of all has the very same images.

    Parameters
    ----------
    data : ImageSet
    batch : int
        Images per rank.
    seed : Seed
    limit : int
        The first so many images; 0: all.
    augment : bool
        Crop and mirror.
    """

    def __init__(self, data: ImageSet, batch: int, seed: Seed, limit: int = 0, augment: bool = False) -> None:
        count = min(limit or len(data.labels), len(data.labels))
        self._images = torch.from_numpy(data.images[:count])
        self._labels = torch.from_numpy(data.labels[:count]).long()
        self._mean, self._deviation = _moments(self._images)
        self._batch, self._seed, self._augment = batch, seed, augment
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.long)

    def per_epoch(self, ranks: int) -> int:
        """Steps of an epoch; the last images that fill no step of all ranks wait for the next."""
        return max(1, len(self._labels) // (self._batch * ranks))

    def at(self, step: int, rank: int, ranks: int) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) float32 and labels (B,) int64 of a rank."""
        per_epoch = self.per_epoch(ranks)
        epoch, place = divmod(step, per_epoch)
        if epoch != self._epoch:
            draw = torch.Generator().manual_seed(self._seed.child("epoch", epoch).value)
            self._epoch, self._order = epoch, torch.randperm(len(self._labels), generator=draw)
        first = (place * ranks + rank) * self._batch
        rows = self._order[first : first + self._batch]
        x = self.scaled(self._images[rows])
        if self._augment:
            draw = torch.Generator().manual_seed(self._seed.child("step", step, "rank", rank).value)
            x = crop_and_flip(x, draw)
        return x, self._labels[rows]

    def scaled(self, images: Tensor) -> Tensor:
        """uint8 images as float32 with the training set's mean 0 and deviation 1, by channel."""
        return (images.float() - self._mean) / self._deviation


@torch.no_grad()
def accuracy(model: torch.nn.Module, data: ImageSet, batches: Batches, size: int = 512) -> tuple[float, float]:
    """Mean cross-entropy and share of right answers over a whole set."""
    was = model.training
    model.eval()
    loss, right = 0.0, 0
    labels = torch.from_numpy(data.labels).long()
    for first in range(0, len(labels), size):
        logits = model(batches.scaled(torch.from_numpy(data.images[first : first + size])))
        y = labels[first : first + size]
        loss += float(functional.cross_entropy(logits, y, reduction="sum"))
        right += int((logits.argmax(1) == y).sum())
    model.train(was)
    return loss / len(labels), right / len(labels)


def _moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation by channel, (C, 1, 1) each."""
    channels = images.shape[1]
    numbers = images.transpose(0, 1).reshape(channels, -1).float()
    deviation, mean = torch.std_mean(numbers, dim=1)
    return mean.view(-1, 1, 1), deviation.clamp_min(1e-6).view(-1, 1, 1)
