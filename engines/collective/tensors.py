"""Conversion between torch tensors and wire tensors."""

from __future__ import annotations

import numpy as np
import torch

from ...core.message import Array, Tensor


def to_wire(tensor: torch.Tensor) -> Tensor:
    """Convert a torch tensor for a message; bfloat16 is sent as its uint16 bit pattern."""
    cpu = tensor.detach().cpu().contiguous()
    if cpu.dtype == torch.bfloat16:
        return Tensor(cpu.view(torch.int16).numpy().view(np.uint16), dtype="bf16")
    return Tensor(cpu.numpy())


def from_wire(tensor: Tensor) -> torch.Tensor:
    """Convert a received tensor to torch; the result owns its memory."""
    array: Array = np.array(tensor.array)
    if tensor.dtype == "bf16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def copy_into(target: torch.Tensor, values: torch.Tensor) -> None:
    """Overwrite ``target`` with a tensor of the same number of elements."""
    with torch.no_grad():
        target.copy_(values.view(target.shape))
