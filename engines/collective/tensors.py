"""Torch tensors as the wire carries them."""

from __future__ import annotations

import numpy as np
import torch

from ...core.message import Array, Tensor


def to_wire(tensor: torch.Tensor) -> Tensor:
    """A tensor of any of the wire's element types; bfloat16 travels as the uint16 that it is."""
    here = tensor.detach().cpu().contiguous()
    if here.dtype == torch.bfloat16:
        return Tensor(here.view(torch.int16).numpy().view(np.uint16), dtype="bf16")
    return Tensor(here.numpy())


def from_wire(tensor: Tensor) -> torch.Tensor:
    """What :func:`to_wire` made, as a tensor of its own."""
    array: Array = np.array(tensor.array)
    if tensor.dtype == "bf16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def copy_into(target: torch.Tensor, numbers: torch.Tensor) -> None:
    """Put numbers in the place of a tensor's own, in its shape."""
    with torch.no_grad():
        target.copy_(numbers.view(target.shape))
