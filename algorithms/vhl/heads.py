"""Adds outputs for virtual classes to a classifier's head, and removes them again."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from ...core.errors import ConfigError
from ...core.seeds import Seed
from ...models.initialization import uniform
from ...models.staged import StagedNet

Model = TypeVar("Model", bound=nn.Module)


def widen_head(model: nn.Module, extra: int, *, seed: int) -> None:
    """Add ``extra`` outputs to ``model.linear`` in place; the existing rows are kept bit for bit.

    Parameters
    ----------
    model : nn.Module
        Any model whose head is an ``nn.Linear`` named ``linear``. Create its optimizer afterwards.
    extra : int
        Virtual classes, C_v.
    seed : int
        Seed of the new rows, which are uniform within ±1/√d.

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


def select_feature_layer(model: StagedNet, layer: str) -> None:
    """Select the features that ``model`` returns: ``last`` (the input of its head), or ``layer1``, ``layer2`` …

    Raises
    ------
    ConfigError
        The model has no such layer.
    """
    number = 0 if layer == "last" else int(layer.removeprefix("layer"))
    if number > len(model.stages):
        raise ConfigError(
            f"the model has {len(model.stages)} stages and no {layer}",
            hint="choose another virtual.feature_layer",
        )
    model.feature_layer = number


def natural_model(model: Model, classes: int) -> Model:
    """A copy of ``model`` whose head has the first ``classes`` outputs only: the model to export and deploy.

    Raises
    ------
    ConfigError
        The model has no head named ``linear``, or its head has fewer outputs.
    """
    if _head(model).out_features < classes:
        raise ConfigError(f"the model has {_head(model).out_features} outputs, fewer than {classes} classes")
    natural = copy.deepcopy(model)
    head = _head(natural)
    _replace(natural, head.weight[:classes], None if head.bias is None else head.bias[:classes])
    return natural


def _head(model: nn.Module) -> nn.Linear:
    head = getattr(model, "linear", None)
    if not isinstance(head, nn.Linear):
        raise ConfigError(f"{type(model).__name__} has no nn.Linear named 'linear'", hint="name the model's head so")
    return head


@torch.no_grad()
def _replace(model: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    """Replace the head of ``model`` by one with copies of ``weight`` [outputs, d] and ``bias`` [outputs]."""
    old = _head(model)
    # On the meta device, so that nothing is drawn from the global generator.
    head = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    head.weight = nn.Parameter(weight.detach().clone(), requires_grad=old.weight.requires_grad)
    if bias is not None:
        head.bias = nn.Parameter(bias.detach().clone(), requires_grad=old.bias.requires_grad)
    model.linear = head.train(old.training)
