"""Scores of a model on images (``docs/methods/vhl.md``, section 11), computed in fp32 on the model's device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ...data.image_transforms import ImageTransform
from ...models.flat_params import FlatModel

_BATCH = 512


def predictions(flat: FlatModel, images: Tensor, prepare: ImageTransform) -> Tensor:
    """Return the index of the largest output for each image, (N,), on the CPU."""
    with _evaluating(flat):
        batches = (prepare(x).to(flat.device) for x in torch.split(images, _BATCH))
        return torch.cat([flat.module(x)[0].argmax(1) for x in batches]).cpu()


def scores_on(
    flat: FlatModel, images: Tensor, labels: Tensor, prepare: ImageTransform, classes: int
) -> dict[str, float]:
    """Return ``acc`` over all outputs, and ``acc_nat`` and ``test_loss`` over the first ``classes`` ones."""
    correct = correct_natural = 0
    loss = 0.0
    with _evaluating(flat):
        for x, y in zip(torch.split(images, _BATCH), torch.split(labels, _BATCH), strict=True):
            logits = flat.module(prepare(x).to(flat.device))[0].cpu()
            natural_logits = logits[:, :classes]
            correct += int((logits.argmax(1) == y).sum())
            correct_natural += int((natural_logits.argmax(1) == y).sum())
            loss += float(F.cross_entropy(natural_logits, y, reduction="sum"))
    count = len(labels)
    return {"acc": correct / count, "acc_nat": correct_natural / count, "test_loss": loss / count}


@contextmanager
def _evaluating(flat: FlatModel) -> Iterator[None]:
    """Switch the model to evaluation, without gradients."""
    flat.module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        flat.module.train()
