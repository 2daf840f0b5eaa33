"""Converts the state of a module and its optimizer to named NumPy arrays and back, without loss."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from ..core.errors import StorageError
from ..core.message import Array

_MODEL, _OPTIMIZER = "model.", "optimizer."
#: The prefix in old checkpoints, which used the British spelling.
_OLD_OPTIMIZER = "optimiser."


def to_arrays(module: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Array]:
    """Copy parameters, buffers and per-parameter optimizer state (e.g. Adam's moments) into NumPy arrays.

    The keys are ``model.<name>`` and ``optimizer.<name>/<slot>``.
    """
    arrays: dict[str, Array] = {_MODEL + n: t.detach().cpu().numpy().copy() for n, t in module.state_dict().items()}
    if optimizer is None:
        return arrays
    for name, parameter in module.named_parameters():
        for slot, value in optimizer.state.get(parameter, {}).items():
            tensor = value if isinstance(value, torch.Tensor) else torch.tensor(value)
            arrays[f"{_OPTIMIZER}{name}/{slot}"] = tensor.detach().cpu().numpy().copy()
    return arrays


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
    model = {n.removeprefix(_MODEL): torch.from_numpy(np.array(a)) for n, a in arrays.items() if n.startswith(_MODEL)}
    try:
        module.load_state_dict(model, strict=True)
    except RuntimeError as error:
        raise StorageError(
            f"the checkpoint belongs to another model: {str(error).splitlines()[-1].strip()}",
            hint="start a new run, or resume this one with its original configuration",
        ) from error
    if optimizer is None:
        return
    parameters = dict(module.named_parameters())
    counts_on_device = {
        id(p)
        for group in optimizer.param_groups
        if group.get("fused") or group.get("capturable")
        for p in group["params"]
    }
    for key, array in arrays.items():
        if key.startswith((_OPTIMIZER, _OLD_OPTIMIZER)):
            name, _, slot = key.partition(".")[2].rpartition("/")
            parameter, value = parameters[name], torch.from_numpy(np.array(array))
            if slot != "step" or id(parameter) in counts_on_device:
                value = value.to(parameter.device)
            optimizer.state[parameter][slot] = value
