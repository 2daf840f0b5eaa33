"""Kronecker factors of one batch: A from a layer's inputs, G from the gradients at its outputs (K-FAC, KFC).

With a mean loss over N samples, autograd's gradient at an output is the sample's own divided by N; the formulas undo
that. ``conv_scale`` shares the powers of N and S (positions of a convolution) between A and G:

=============== =================== ===================
scale           A                   G
=============== =================== ===================
``kfc``         UᵀU / N             (N / S) gᵀg
``official``    UᵀU / (N S²)        N S gᵀg
``kfac_pytorch``  UᵀU / (N S³)      gᵀg / (N S³)
=============== =================== ===================

The first is the textbook's (arXiv 1602.01407); the others are those of the DP-KFAC authors' code and of kfac-pytorch
0.4.2, for comparisons: only the product A ⊗ G meets the damping, and the last one's is smaller by N² S⁵ (for Linear,
where it leaves the batch out too, by N²).
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

ConvScale: TypeAlias = Literal["kfc", "official", "kfac_pytorch"]
SeqReduction: TypeAlias = Literal["mean", "flatten"]

#: Numbers of the patch matrix that are made at a time; 16 Mi fp32 numbers are 64 MiB.
CHUNK = 1 << 24


def input_factor(
    module: nn.Linear | nn.Conv2d, inputs: Tensor, scale: ConvScale = "kfc", reduction: SeqReduction = "mean"
) -> Tensor:
    """Factor A of a batch.

    Parameters
    ----------
    inputs : Tensor
        (N, in), (N, …, in) or (in,) of a Linear; (N, C, H, W) or (C, H, W) of a Conv2d.

    Returns
    -------
    Tensor
        (a, a), symmetric, float32 or wider.
    """
    inputs = _wide(inputs.detach())
    if isinstance(module, nn.Conv2d):
        return _conv_input_factor(module, inputs, scale)
    rows = _rows(inputs, reduction)
    return _gram(_with_ones(rows, module.bias is not None)) / len(rows)


def output_factor(
    module: nn.Linear | nn.Conv2d, gradients: Tensor, scale: ConvScale = "kfc", reduction: SeqReduction = "mean"
) -> Tensor:
    """Factor G of a batch.

    Parameters
    ----------
    gradients : Tensor
        Of a mean loss, at the module's output; shaped as that.

    Returns
    -------
    Tensor
        (g, g), symmetric, float32 or wider.
    """
    gradients = _wide(gradients.detach())
    if isinstance(module, nn.Conv2d):
        batch = gradients.reshape(-1, *gradients.shape[-3:])
        samples, places = batch.shape[0], batch.shape[2] * batch.shape[3]
        rows = batch.transpose(0, 1).reshape(batch.shape[1], -1).T
        factor = {
            "kfc": samples / places,
            "official": samples * places,
            "kfac_pytorch": 1 / (samples * places**3),
        }[scale]
        return _gram(rows) * factor
    rows = _rows(gradients, reduction)
    return _gram(rows) * (1 / len(rows) if scale == "kfac_pytorch" else len(rows))


def _conv_input_factor(module: nn.Conv2d, inputs: Tensor, scale: ConvScale) -> Tensor:
    batch = _padded(module, inputs.reshape(-1, *inputs.shape[-3:]))
    samples = len(batch)
    biased = module.bias is not None
    side = module.weight[0].numel() + biased
    total = batch.new_zeros(side, side)
    places = 1
    step = max(1, CHUNK // max(1, _patch_numbers(module, batch)))
    for part in torch.split(batch, step):
        patches = functional.unfold(part, module.kernel_size, dilation=module.dilation, stride=module.stride)
        places = patches.shape[-1]
        rows = _with_ones(patches.transpose(1, 2).reshape(-1, patches.shape[1]), biased)
        total.addmm_(rows.T, rows)
    divisor = {"kfc": samples, "official": samples * places**2, "kfac_pytorch": samples * places**3}[scale]
    return total / divisor


def _padded(module: nn.Conv2d, batch: Tensor) -> Tensor:
    """The input with its border, for every way of padding that Conv2d knows."""
    if module.padding == "same":
        whole = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        sides = [(w // 2, w - w // 2) for w in whole]
    elif module.padding == "valid":
        return batch
    else:
        sides = [(int(p), int(p)) for p in module.padding]
    (top, bottom), (left, right) = sides
    if not any((top, bottom, left, right)):
        return batch
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return functional.pad(batch, (left, right, top, bottom), mode=mode)


def _patch_numbers(module: nn.Conv2d, padded: Tensor) -> int:
    """Numbers of one sample's patch matrix."""
    places = 1
    for size, kernel, stride, dilation in zip(
        padded.shape[-2:], module.kernel_size, module.stride, module.dilation, strict=True
    ):
        places *= (size - dilation * (kernel - 1) - 1) // stride + 1
    return places * module.weight[0].numel()


def _rows(values: Tensor, reduction: SeqReduction) -> Tensor:
    """(…, n) as (rows, n): middle axes averaged, or part of the batch."""
    if values.dim() == 1:
        return values[None]
    if values.dim() > 2 and reduction == "mean":
        return values.flatten(1, -2).mean(dim=1)
    return values.reshape(-1, values.shape[-1])


def _with_ones(rows: Tensor, biased: bool) -> Tensor:
    return torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1) if biased else rows


def _gram(rows: Tensor) -> Tensor:
    return rows.T @ rows


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype in (torch.float32, torch.float64) else values.float()
