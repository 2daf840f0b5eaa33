"""What is trained and how: frozen parts, and parameter groups for AdamW.

Source: specification of split fine-tuning §3.3, §9, §11.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from ...engines.split.architectures import ARCHITECTURES
from .front import Front

Freeze = Literal["none", "embeddings", "front", "front+codec"]


def freeze(front: Front, what: Freeze) -> bool:
    """Stop training parts of a front.

    Parameters
    ----------
    front : Front
    what : {"none", "embeddings", "front", "front+codec"}
        ``front`` leaves only the codec's V and S to train; ``front+codec`` leaves nothing.

    Returns
    -------
    bool
        Whether anything is left to train: if not, no gradient has to travel down.
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
    """Groups for AdamW, in a fixed order, of the parameters that are trained.

    Biases and LayerNorms have no weight decay; nor has the codec (decay would shrink the code), which may
    learn faster than the body.

    Parameters
    ----------
    module : nn.Module
        A front, a trunk or a whole classifier.
    lr : float
        Learning rate of the body.
    decay : float
        Weight decay of the body's matrices.
    codec_lr_factor : float
        Multiplies ``lr`` for the codec (5 in the measured recipes).

    Returns
    -------
    list of dict
        ``name`` (``decay``, ``no_decay``, ``codec``), ``params``, ``lr``, ``weight_decay``; empty groups are
        left out.
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
