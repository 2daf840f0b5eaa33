"""Models by name, whatever family they are of; first weights by the run's seed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

_SMALL = re.compile(r"resnet(20|32|44|56|110)")
_WIDE = ("resnet10", "resnet18", "resnet50")


def check_name(name: str) -> None:
    """Refuse what :func:`build` does not know.

    Raises
    ------
    ValueError
    """
    if name == "mlp" or name in _WIDE or _SMALL.fullmatch(name) or re.fullmatch(r"torchvision:\w+", name):
        return
    raise ValueError(
        f"there is no model '{name}'; there are mlp, resnet20 … 110, {', '.join(_WIDE)} and torchvision:NAME"
    )


def build(name: str, classes: int, channels: int, size: int, seed: int) -> nn.Module:
    """A model on the CPU; the global generator is left as it was.

    Parameters
    ----------
    channels, size : int
        Of the images, size x size pixels.

    Raises
    ------
    ConfigError
        torchvision has no such model.
    """
    import torch

    from ...core.errors import ConfigError
    from ..dp_kfac.model import CifarResNet, perceptron
    from ..vhl.models import build as wide

    if name in _WIDE:
        return wide(name, classes, channels, seed=seed, size=size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "mlp":
            return perceptron((channels * size * size, 256, 128, classes))
        if name.startswith("torchvision:"):
            from ...data.extras import vision_module

            models = vision_module("torchvision.models")
            try:
                made: nn.Module = models.get_model(name.removeprefix("torchvision:"), weights=None, num_classes=classes)
            except ValueError as error:
                raise ConfigError(f"torchvision has no model '{name}': {error}") from error
            return made
        return CifarResNet(int(name.removeprefix("resnet")), classes, channels)
