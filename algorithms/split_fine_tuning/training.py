"""Freezing of parts of the front, and parameter groups for AdamW.

``docs/methods/split_fine_tuning.md``, section 9, explains the groups.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from ...engines.split.architectures import ARCHITECTURES
from .front import Front

Freeze = Literal["none", "embeddings", "front", "front+codec"]


def freeze(front: Front, what: Freeze) -> bool:
    """Freeze parts of a front.

    Parameters
    ----------
    front : Front
    what : {"none", "embeddings", "front", "front+codec"}
        ``front`` trains only the codec's V, S and Q; ``front+codec`` trains nothing.

    Returns
    -------
    bool
        Whether any parameter is trainable; if not, no gradients have to be sent down.
    """
    model = front.model
    if what == "embeddings":
        for name in ARCHITECTURES[front.plan.family].embeddings:
            model.get_submodule(name).requires_grad_(False)
    elif what != "none":
        model.requires_grad_(False)
        if what == "front+codec" and front.codec is not None:
            front.codec.requires_grad_(False)
    return any(p.requires_grad for p in front.parameters())


def parameter_groups(
    module: nn.Module, lr: float, *, decay: float = 0.01, codec_lr_factor: float = 1.0
) -> list[dict[str, Any]]:
    """Return the trainable parameters as groups for AdamW, in a fixed order.

    Biases, LayerNorms and the codec have no weight decay (decay would shrink the code). The codec has its own learning
    rate.

    Parameters
    ----------
    module : nn.Module
        A front, a trunk or a whole classifier.
    lr : float
        Learning rate of all parameters except the codec's.
    decay : float
        Weight decay of matrices outside the codec.
    codec_lr_factor : float
        Factor on ``lr`` for the codec.

    Returns
    -------
    list of dict
        Keys ``name`` (``decay``, ``no_decay``, ``codec``), ``params``, ``lr``, ``weight_decay``; without empty groups.
    """
    names: dict[str, list[nn.Parameter]] = {"decay": [], "no_decay": [], "codec": []}
    norms = {id(p) for m in module.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters()}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.startswith("codec."):
            group = "codec"
        elif id(parameter) in norms or name.endswith("bias"):
            group = "no_decay"
        else:
            group = "decay"
        names[group].append(parameter)
    rates = {"decay": (lr, decay), "no_decay": (lr, 0.0), "codec": (lr * codec_lr_factor, 0.0)}
    return [
        {"name": name, "params": params, "lr": rates[name][0], "weight_decay": rates[name][1]}
        for name, params in names.items()
        if params
    ]
