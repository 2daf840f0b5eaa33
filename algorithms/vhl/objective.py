"""The loss of a client's batch as a function of its model: of natural images alone, or with virtual data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ...engines.federated.local import Objective
from ...engines.federated.means import Means
from .batch_norm import forward_both
from .config import Virtual
from .losses import LossParts, VHLLoss

#: Reported metric -> attribute of LossParts.
_TERMS = {"train_ce": "natural", "virtual_ce": "virtual", "align_loss": "align", "noise_loss": "noise"}
_DOMAIN = {"domain_loss": "domain"}


def terms(settings: Virtual) -> Mapping[str, str]:
    """Return the reported metrics and the attribute of LossParts of each; none without virtual data."""
    if not settings.enabled:
        return {}
    return _TERMS | _DOMAIN if settings.domain_weight else _TERMS


def objective(model: nn.Module, loss: VHLLoss, settings: Virtual, means: Means | None) -> Objective:
    """Return the objective for batches of the task; ``means`` receives the terms of each batch."""
    names = tuple(terms(settings).values())

    def plain(batch: Any) -> Tensor:
        x, y = batch
        return F.cross_entropy(model(x)[0].float(), y)

    def with_images(batch: Any) -> Tensor:
        epoch, x, y, x_v, y_v = batch
        logits, features = forward_both(model, x, x_v, settings.bn)
        return report(loss(logits, features, y, y_v, epoch=epoch))

    def with_anchors(batch: Any) -> Tensor:
        epoch, x, y, y_v, seed = batch
        logits, features = model(x)
        generator = torch.Generator().manual_seed(seed)
        return report(loss(logits, features, y, y_v, epoch=epoch, generator=generator))

    def report(parts: LossParts) -> Tensor:
        if means is not None:
            means.add(*(getattr(parts, name) for name in names))
        return parts.total

    if not settings.enabled:
        return plain
    return with_images if settings.has_images else with_anchors


def sample_losses(model: Callable[..., tuple[Tensor, Tensor]], batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the losses of natural images, (B,), whose mean is the objective without virtual data."""
    return F.cross_entropy(model(batch[0])[0], batch[1], reduction="none")
