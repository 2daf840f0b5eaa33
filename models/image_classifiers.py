"""Image classifiers by name that return features beside logits; initial weights from a seed."""

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
    """A model on the CPU, its first weights from ``seed``; the global generator is left alone.

    Parameters
    ----------
    name : str
        One of :data:`NAMES`.
    outputs : int
        Classes.
    channels : int
        Channels of the images.
    norm : {"batch", "group"}
        ``lenet`` has none.
    seed : int
    widths : sequence of int
        Of ``conv3`` only.
    size : int
        Height and width of the images; ``lenet`` depends on it.

    Raises
    ------
    ConfigError
        There is no such model, or the images are too small for it.
    """
    if name not in NAMES:
        raise ConfigError(f"there is no model called '{name}'", hint=f"choose one of {', '.join(NAMES)}")
    if name == "lenet" and size < 16:
        raise ConfigError(
            f"lenet cannot see images of {size} pixels a side", hint="choose conv3, or images of 16 or more"
        )
    make: Callable[[], StagedNet]
    if name == "conv3":
        make = partial(conv3, outputs, channels, norm, widths)
    elif name == "lenet":
        make = partial(lenet, outputs, channels, size)
    else:
        make = partial(resnet, int(name.removeprefix("resnet")), outputs, channels, norm)
    return seeded(make, Seed(seed).child("model").value)
