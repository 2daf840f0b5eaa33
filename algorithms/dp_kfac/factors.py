"""Kronecker factors of one batch: A from a layer's inputs, G from the gradients at its outputs.

See ``docs/methods/dp_kfac.md``, section 2; K-FAC is arXiv 1503.05671, its extension to convolutions (KFC) arXiv
1602.01407. With a mean loss over N samples, autograd's gradient at an output is the sample's own divided by N; the
formulas undo that. ``conv_scale`` selects how the powers of N and S (output positions of a convolution) are split
between A and G:

=============== =================== ===================
scale           A                   G
=============== =================== ===================
``kfc``         UᵀU / N             (N / S) gᵀg
``official``    UᵀU / (N S²)        N S gᵀg
``kfac_pytorch``  UᵀU / (N S³)      gᵀg / (N S³)
=============== =================== ===================

``kfc`` is the scale of the paper. The others are those of the DP-KFAC authors' code and of kfac-pytorch 0.4.2, for
comparisons. The damping is added to products of eigenvalues of A and G, so only the scale of A ⊗ G matters: that of
kfac-pytorch is smaller by N² S⁵ (for Linear, where it omits the batch size, by N²).
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

ConvScale: TypeAlias = Literal["kfc", "official", "kfac_pytorch"]
SeqReduction: TypeAlias = Literal["mean", "flatten"]

#: Elements of the patch matrix that are computed at a time; 16 Mi elements in float32 are 64 MiB.
CHUNK_ELEMENTS = 1 << 24


def input_factor(
    module: nn.Linear | nn.Conv2d, inputs: Tensor, scale: ConvScale = "kfc", reduction: SeqReduction = "mean"
) -> Tensor:
    """Compute factor A of a batch.

    Parameters
    ----------
    inputs : Tensor
        (N, in), (N, …, in) or (in,) of a Linear; (N, C, H, W) or (C, H, W) of a Conv2d.
    scale : {"kfc", "official", "kfac_pytorch"}
        For Conv2d, see the module's table.
    reduction : {"mean", "flatten"}
        For inputs (N, …, in): average over the middle axes, or treat them as part of the batch.

    Returns
    -------
    Tensor
        (a, a), symmetric, float32 or wider.
    """
    inputs = _at_least_float32(inputs.detach())
    if isinstance(module, nn.Conv2d):
        return _conv_input_factor(module, inputs, scale)
    rows = _rows(inputs, reduction)
    return _gram(_append_ones(rows, module.bias is not None)) / len(rows)


def output_factor(
    module: nn.Linear | nn.Conv2d, gradients: Tensor, scale: ConvScale = "kfc", reduction: SeqReduction = "mean"
) -> Tensor:
    """Compute factor G of a batch.

    Parameters
    ----------
    gradients : Tensor
        Gradients of a mean loss at the module's output, in its shape.

    Returns
    -------
    Tensor
        (g, g), symmetric, float32 or wider.
    """
    gradients = _at_least_float32(gradients.detach())
    if isinstance(module, nn.Conv2d):
        batch = gradients.reshape(-1, *gradients.shape[-3:])
        samples, positions = batch.shape[0], batch.shape[2] * batch.shape[3]
        rows = batch.transpose(0, 1).reshape(batch.shape[1], -1).T
        factor = {
            "kfc": samples / positions,
            "official": samples * positions,
            "kfac_pytorch": 1 / (samples * positions**3),
        }[scale]
        return _gram(rows) * factor
    rows = _rows(gradients, reduction)
    return _gram(rows) * (1 / len(rows) if scale == "kfac_pytorch" else len(rows))


def _conv_input_factor(module: nn.Conv2d, inputs: Tensor, scale: ConvScale) -> Tensor:
    batch = _padded(module, inputs.reshape(-1, *inputs.shape[-3:]))
    samples = len(batch)
    has_bias = module.bias is not None
    side = module.weight[0].numel() + has_bias
    total = batch.new_zeros(side, side)
    positions = 1
    samples_per_chunk = max(1, CHUNK_ELEMENTS // max(1, _patch_elements(module, batch)))
    for part in torch.split(batch, samples_per_chunk):
        patches = functional.unfold(part, module.kernel_size, dilation=module.dilation, stride=module.stride)
        positions = patches.shape[-1]
        rows = _append_ones(patches.transpose(1, 2).reshape(-1, patches.shape[1]), has_bias)
        total.addmm_(rows.T, rows)
    divisor = {"kfc": samples, "official": samples * positions**2, "kfac_pytorch": samples * positions**3}[scale]
    return total / divisor


def _padded(module: nn.Conv2d, batch: Tensor) -> Tensor:
    """Pad the input as the module does, for every padding and padding mode of Conv2d."""
    if module.padding == "same":
        total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        sides = [(t // 2, t - t // 2) for t in total]
    elif module.padding == "valid":
        return batch
    else:
        sides = [(int(p), int(p)) for p in module.padding]
    (top, bottom), (left, right) = sides
    if not any((top, bottom, left, right)):
        return batch
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return functional.pad(batch, (left, right, top, bottom), mode=mode)


def _patch_elements(module: nn.Conv2d, padded: Tensor) -> int:
    """Return the elements of one sample's patch matrix."""
    positions = 1
    for size, kernel, stride, dilation in zip(
        padded.shape[-2:], module.kernel_size, module.stride, module.dilation, strict=True
    ):
        positions *= (size - dilation * (kernel - 1) - 1) // stride + 1
    return positions * module.weight[0].numel()


def _rows(values: Tensor, reduction: SeqReduction) -> Tensor:
    """Reshape (…, n) to (rows, n): average over the middle axes, or flatten them into the batch."""
    if values.dim() == 1:
        return values[None]
    if values.dim() > 2 and reduction == "mean":
        return values.flatten(1, -2).mean(dim=1)
    return values.reshape(-1, values.shape[-1])


def _append_ones(rows: Tensor, has_bias: bool) -> Tensor:
    return torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1) if has_bias else rows


def _gram(rows: Tensor) -> Tensor:
    return rows.T @ rows


def _at_least_float32(values: Tensor) -> Tensor:
    return values if values.dtype in (torch.float32, torch.float64) else values.float()
