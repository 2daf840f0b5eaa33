"""The task of ``data_parallel``: image classification with cross-entropy."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional

from ...core.seeds import Seed
from ...data.image_set import ImageTask
from ...models.catalog import build
from .image_batches import Batches, accuracy
from .image_config import DataParallelConfig
from .task import Loss, Score, TrainTask


class ImageClassification(TrainTask[tuple[Tensor, Tensor]]):
    """A classifier by name, trained on a set of labeled images.

    Parameters
    ----------
    config : DataParallelConfig
    images : ImageTask
    seed : Seed
        Of the run.
    """

    metrics = ("test_loss", "accuracy")
    score = Score("accuracy")

    def __init__(self, config: DataParallelConfig, images: ImageTask, seed: Seed) -> None:
        channels, size = images.train.images.shape[1:3]
        self.model = build(config.model, len(images.classes), channels, size, seed.child("weights").value % (1 << 63))
        self._test = images.test
        self._batches = Batches(images.train, config.batch, seed.child("batches"), config.train_samples, config.augment)

    def steps_per_epoch(self, ranks: int) -> int:
        """Return the batches of an epoch; images that do not fill a batch of all ranks are left out."""
        return self._batches.steps_per_epoch(ranks)

    def batch(self, index: int, rank: int, ranks: int) -> tuple[Tensor, Tensor]:
        """Return images (B, C, H, W) float32 and labels (B,) int64."""
        return self._batches.at(index, rank, ranks)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Loss:
        """Return the cross-entropy."""
        x, y = batch
        logits = model(x)
        return Loss(functional.cross_entropy(logits, y), outputs=logits)

    def evaluate(self, model: nn.Module) -> Mapping[str, float]:
        """Return cross-entropy and accuracy on the test set."""
        loss, share_correct = accuracy(model, self._test, self._batches)
        return {"test_loss": loss, "accuracy": share_correct}
