"""Builds any image classifier of this package, or of torchvision, by name."""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

_CIFAR = re.compile(r"resnet(20|32|44|56|110)")
_STAGED = ("resnet10", "resnet18", "resnet50")


def check_name(name: str) -> None:
    """Check that :func:`build` knows a model name.

    Raises
    ------
    ValueError
        No model has that name.
    """
    if name == "mlp" or name in _STAGED or _CIFAR.fullmatch(name) or re.fullmatch(r"torchvision:\w+", name):
        return
    raise ValueError(
        f"unknown model '{name}'; known are mlp, resnet20 … 110, {', '.join(_STAGED)} and torchvision:NAME"
    )


def build(name: str, classes: int, channels: int, size: int, seed: int) -> nn.Module:
    """Build a classifier on the CPU, from images (B, channels, size, size) to logits (B, classes).

    Parameters
    ----------
    name : str
        ``mlp``, ``resnet20`` … ``resnet110`` (CIFAR), ``resnet10``, ``resnet18``, ``resnet50`` or ``torchvision:NAME``.
    classes : int
        Outputs.
    channels, size : int
        Channels, and height and width, of the images.
    seed : int
        Seed of the initial weights; PyTorch's global generator keeps its state.

    Raises
    ------
    ConfigError
        torchvision has no such classifier, or the classifier does not accept such images.
    """
    import torch

    from .cifar_resnet import CifarResNet
    from .devices import forked_generators
    from .image_classifiers import build as build_staged
    from .mlp import perceptron

    if name in _STAGED:
        model = build_staged(name, classes, channels, seed=seed, size=size)
        model.register_forward_hook(lambda module, images, logits_and_features: logits_and_features[0])
        return model
    with forked_generators(torch.device("cpu")):
        torch.manual_seed(seed)
        if name == "mlp":
            return perceptron((channels * size * size, 256, 128, classes))
        if name.startswith("torchvision:"):
            return _build_torchvision(name.removeprefix("torchvision:"), classes, (channels, size, size))
        return CifarResNet(int(name.removeprefix("resnet")), classes, channels)


def _build_torchvision(name: str, classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    """Build a torchvision classifier, and run it once: it reports unsuitable images only in its forward pass."""
    import torch

    from ..core.errors import ConfigError
    from ..core.extras import vision_module

    models = vision_module("torchvision.models")
    if name not in models.list_models(module=models):
        raise ConfigError(f"torchvision has no classifier '{name}'", hint="torchvision.models.list_models() has all")
    model: nn.Module = models.get_model(name, weights=None, num_classes=classes)
    try:
        with torch.no_grad():  # on a copy, because a forward pass updates batch norm statistics
            logits = copy.deepcopy(model).train()(torch.zeros(2, *image_shape))
    except (RuntimeError, ValueError, AssertionError) as error:
        shape = " x ".join(map(str, image_shape))
        raise ConfigError(f"torchvision's '{name}' does not accept images of {shape}: {error}") from error
    if not isinstance(logits, torch.Tensor):
        raise ConfigError(
            f"torchvision's '{name}' returns several outputs, which is not supported", hint="choose another model"
        )
    return model
