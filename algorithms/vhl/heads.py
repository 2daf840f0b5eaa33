"""Classifier heads with room for virtual classes."""

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
    """Give ``model.linear`` another ``extra`` outputs, in place; what it had stays, bit for bit.

    Parameters
    ----------
    model : nn.Module
        Any model whose head is an ``nn.Linear`` called ``linear``. Make its optimizer afterwards.
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


def show_features(model: StagedNet, layer: str) -> None:
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
            hint="choose another virtual.feature_layer",
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
        raise ConfigError(f"{type(model).__name__} has no nn.Linear called 'linear'", hint="name the model's head so")
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
