"""Converts the state of a module and its optimizer to named NumPy arrays and back, without loss."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from ..core.errors import StorageError
from ..core.message import Array
from .wrappers import plain_name, plain_names

_MODEL, _OPTIMIZER = "model.", "optimizer."
#: The prefix in old checkpoints, which used the British spelling.
_OLD_OPTIMIZER = "optimiser."


def to_arrays(module: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Array]:
    """Copy parameters, buffers and per-parameter optimizer state (e.g. Adam's moments) into NumPy arrays.

    The keys are ``model.<name>`` and ``optimizer.<name>/<slot>``, with the names that the module has without wrappers.
    NumPy has no bfloat16: such tensors are stored as uint16 with the same bits.
    """
    state = module.state_dict()
    names = plain_names(module, list(state))
    arrays: dict[str, Array] = {_MODEL + names[name]: _array(tensor) for name, tensor in state.items()}
    if optimizer is None:
        return arrays
    for name, parameter in module.named_parameters():
        for slot, value in optimizer.state.get(parameter, {}).items():
            tensor = value if isinstance(value, torch.Tensor) else torch.tensor(value)
            arrays[f"{_OPTIMIZER}{plain_name(module, name)}/{slot}"] = _array(tensor)
    return arrays


def _array(tensor: torch.Tensor) -> Array:
    tensor = tensor.detach().cpu()
    found: Array = (tensor.view(torch.uint16) if tensor.dtype is torch.bfloat16 else tensor).numpy().copy()
    return found


def _tensor(array: Array, like: torch.Tensor) -> torch.Tensor:
    tensor = torch.from_numpy(np.array(array))
    is_bfloat16 = tensor.dtype is torch.uint16 and like.dtype is torch.bfloat16
    return tensor.view(torch.bfloat16) if is_bfloat16 else tensor


def from_arrays(arrays: Mapping[str, Array], module: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Load arrays made by :func:`to_arrays` into a module and its optimizer; other keys are ignored.

    Raises
    ------
    StorageError
        A parameter is missing or has another shape.

    Notes
    -----
    Optimizer state goes where torch expects it: to the parameter's device, and a count of steps to the CPU unless the
    optimizer reads it on the device.
    """
    state = module.state_dict()
    actual = {plain: name for name, plain in plain_names(module, list(state)).items()}
    model = {}
    for key, array in arrays.items():
        if key.startswith(_MODEL):
            name = actual.get(key.removeprefix(_MODEL), key.removeprefix(_MODEL))
            model[name] = _tensor(array, state[name]) if name in state else torch.from_numpy(np.array(array))
    try:
        module.load_state_dict(model, strict=True)
    except RuntimeError as error:
        raise StorageError(
            f"the checkpoint belongs to another model: {str(error).splitlines()[-1].strip()}",
            hint="start a new run, or resume this one with its original configuration",
        ) from error
    if optimizer is None:
        return
    parameters = {plain_name(module, name): parameter for name, parameter in module.named_parameters()}
    counts_on_device = {
        id(p)
        for group in optimizer.param_groups
        if group.get("fused") or group.get("capturable")
        for p in group["params"]
    }
    for key, array in arrays.items():
        if key.startswith((_OPTIMIZER, _OLD_OPTIMIZER)):
            name, _, slot = key.partition(".")[2].rpartition("/")
            parameter, value = parameters[name], _tensor(array, parameters[name])
            if slot != "step" or id(parameter) in counts_on_device:
                value = value.to(parameter.device)
            optimizer.state[parameter][slot] = value
