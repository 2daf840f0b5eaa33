"""Models by name, and heads with room for virtual classes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from ...core.errors import ConfigError
from ...core.seeds import Seed
from .initial import seeded, uniform
from .resnet import resnet
from .small import conv3, lenet
from .staged import Norm, StagedNet

Model = TypeVar("Model", bound=nn.Module)
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
        C, natural classes; :func:`widen_head` adds virtual ones.
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
        raise ConfigError(f"there is no model called '{name}'", cure=f"choose one of {', '.join(NAMES)}")
    if name == "lenet" and size < 16:
        raise ConfigError(
            f"lenet cannot see images of {size} pixels a side", cure="choose conv3, or images of 16 or more"
        )
    make: Callable[[], StagedNet]
    if name == "conv3":
        make = partial(conv3, outputs, channels, norm, widths)
    elif name == "lenet":
        make = partial(lenet, outputs, channels, size)
    else:
        make = partial(resnet, int(name.removeprefix("resnet")), outputs, channels, norm)
    return seeded(make, Seed(seed).child("model").value)


def widen_head(model: nn.Module, extra: int, *, seed: int) -> None:
    """Give ``model.linear`` another ``extra`` outputs, in place; what it had stays, bit for bit.

    Parameters
    ----------
    model : nn.Module
        Any model whose head is an ``nn.Linear`` called ``linear``. Make its optimiser afterwards.
    extra : int
        C_v, virtual classes.
    seed : int
        Of the new rows, uniform within 1/√d: equal seeds give equal rows.

    Raises
    ------
    ConfigError
        The model has no such head.
    """
    head = _head(model)
    generator = torch.Generator().manual_seed(Seed(seed).child("virtual head").value)
    weight, bias = torch.empty(extra, head.in_features), torch.empty(extra)
    for tensor in (weight, bias):
        uniform(tensor, head.in_features, generator)
    biases = None if head.bias is None else torch.cat([head.bias, bias.to(head.bias)])
    _replace(model, torch.cat([head.weight, weight.to(head.weight)]), biases)


def show(model: StagedNet, layer: str) -> None:
    """Have ``model`` show the features of ``layer``: ``last``, what its head reads, or ``layer1``, ``layer2`` …

    Raises
    ------
    ConfigError
        The model has no such layer.
    """
    number = 0 if layer == "last" else int(layer.removeprefix("layer"))
    if number > len(model.stages):
        raise ConfigError(
            f"the model has {len(model.stages)} stages, there is no {layer}",
            cure="choose another virtual.feature_layer",
        )
    model.feature_layer = number


def natural_part(model: Model, classes: int) -> Model:
    """A copy of ``model`` with its first ``classes`` outputs only: what is exported and used.

    Its largest output is the model's largest natural one.

    Raises
    ------
    ConfigError
        The model has no head called ``linear``, or one with fewer outputs.
    """
    if _head(model).out_features < classes:
        raise ConfigError(f"the model has {_head(model).out_features} outputs, fewer than {classes} classes")
    part = copy.deepcopy(model)
    head = _head(part)
    _replace(part, head.weight[:classes], None if head.bias is None else head.bias[:classes])
    return part


def _head(model: nn.Module) -> nn.Linear:
    head = getattr(model, "linear", None)
    if not isinstance(head, nn.Linear):
        raise ConfigError(f"{type(model).__name__} has no nn.Linear called 'linear'", cure="name the model's head so")
    return head


@torch.no_grad()
def _replace(model: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    """Give ``model`` a head of copies of ``weight`` [outputs, d] and ``bias`` [outputs]."""
    old = _head(model)
    # Without memory at first, so that its first weights are not drawn from the global generator.
    head = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    head.weight = nn.Parameter(weight.detach().clone(), requires_grad=old.weight.requires_grad)
    if bias is not None:
        head.bias = nn.Parameter(bias.detach().clone(), requires_grad=old.bias.requires_grad)
    model.linear = head.train(old.training)
