"""Fronts as messages: what edges send when their copies of the front are averaged."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ...core.message import Array, Encoding, Tensor
from ...wire.encodings import Bf16, Fp16


def weight_tensors(arrays: Mapping[str, Array], encoding: str) -> dict[str, Tensor]:
    """Named float32 weights as tensors written with ``encoding`` (raw, fp16 or bf16)."""
    how: Encoding | None = {"raw": None, "fp16": Fp16(), "bf16": Bf16()}[encoding]
    return {name: Tensor(array, how) for name, array in arrays.items()}


def trainable_arrays(module: nn.Module) -> dict[str, Array]:
    """The parameters that training changes, by name, as NumPy views."""
    return {n: p.detach().numpy() for n, p in module.named_parameters() if p.requires_grad}
