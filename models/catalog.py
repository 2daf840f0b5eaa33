"""Models by name, whatever family they are of; first weights by the run's seed."""

from __future__ import annotations

import copy
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
    """A model on the CPU that makes logits (B, classes) of images; the global generator is left as it was.

    Parameters
    ----------
    channels, size : int
        Of the images, size x size pixels.

    Raises
    ------
    ConfigError
        torchvision has no such classifier, or it cannot take these images.
    """
    import torch

    from .cifar_resnet import CifarResNet
    from .image_classifiers import build as wide
    from .mlp import perceptron

    if name in _WIDE:
        shows_features = wide(name, classes, channels, seed=seed, size=size)
        shows_features.register_forward_hook(lambda module, images, both: both[0])
        return shows_features
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "mlp":
            return perceptron((channels * size * size, 256, 128, classes))
        if name.startswith("torchvision:"):
            return _of_torchvision(name.removeprefix("torchvision:"), classes, (channels, size, size))
        return CifarResNet(int(name.removeprefix("resnet")), classes, channels)


def _of_torchvision(name: str, classes: int, image: tuple[int, int, int]) -> nn.Module:
    """A model that takes an image, tried with two: torchvision's say what is wrong only when they run."""
    import torch

    from ..core.errors import ConfigError
    from ..core.extras import vision_module

    models = vision_module("torchvision.models")
    if name not in models.list_models(module=models):
        raise ConfigError(f"torchvision has no classifier '{name}'", hint="torchvision.models.list_models() has all")
    made: nn.Module = models.get_model(name, weights=None, num_classes=classes)
    try:
        with torch.no_grad():  # a copy: batch norms count
            logits = copy.deepcopy(made).train()(torch.zeros(2, *image))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ConfigError(f"torchvision's '{name}' cannot take images of {_shape(image)}: {error}") from error
    if not isinstance(logits, torch.Tensor):
        raise ConfigError(f"torchvision's '{name}' makes several outputs, one is trained", hint="choose another model")
    return made


def _shape(image: tuple[int, int, int]) -> str:
    return " x ".join(map(str, image))
