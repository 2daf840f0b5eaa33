"""Builds image classifiers that return logits and features, by name and seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from ..core.errors import ConfigError
from ..core.seeds import Seed
from .initialization import seeded
from .resnet import resnet
from .small import conv3, lenet
from .staged import Norm, StagedNet

NAMES = ("conv3", "lenet", "resnet10", "resnet18", "resnet50")


def build(
    name: str,
    outputs: int,
    channels: int = 3,
    *,
    norm: Norm = "batch",
    seed: int,
    widths: Sequence[int] = (16, 32, 64),
    size: int = 32,
) -> StagedNet:
    """Build a classifier on the CPU; PyTorch's global generator keeps its state.

    Parameters
    ----------
    name : str
        One of :data:`NAMES`.
    outputs : int
        Logits of the head.
    channels : int
        Channels of the images.
    norm : {"batch", "group"}
        Normalization layers; ``lenet`` has none.
    seed : int
        Seed of the initial weights.
    widths : sequence of int
        Channels of the layers of ``conv3``; other models ignore it.
    size : int
        Height and width of the images; ``lenet`` depends on it.

    Raises
    ------
    ConfigError
        No model has that name, or the images are too small for it.
    """
    if name not in NAMES:
        raise ConfigError(f"unknown model '{name}'", hint=f"choose one of {', '.join(NAMES)}")
    if name == "lenet" and size < 16:
        raise ConfigError(
            f"lenet needs images of at least 16 x 16 pixels, not {size} x {size}", hint="choose conv3 or larger images"
        )
    make: Callable[[], StagedNet]
    if name == "conv3":
        make = partial(conv3, outputs, channels, norm, widths)
    elif name == "lenet":
        make = partial(lenet, outputs, channels, size)
    else:
        make = partial(resnet, int(name.removeprefix("resnet")), outputs, channels, norm)
    return seeded(make, Seed(seed).child("model").value)
