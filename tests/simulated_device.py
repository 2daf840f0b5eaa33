"""A device in software: tensors on it compute with the CPU's bits, but cannot be mixed with tensors on the CPU.

For tests of the placement of tensors on machines without an accelerator. As on a real one, only copies go from one
device to another, zero-dimensional CPU tensors may take part, and NumPy cannot read its tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from farshore.models import devices

#: torch has no name for a simulated device; of the names it has, autograd treats this one like the CPU.
DEVICE = torch.device("lazy")
_COPIES = {torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default}


class OnDevice(torch.Tensor):
    """A tensor on the device, which holds its values in a CPU tensor."""

    values: torch.Tensor

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> OnDevice:
        made: OnDevice = torch.Tensor._make_wrapper_subclass(
            cls, values.shape, values.stride(), values.storage_offset(), dtype=values.dtype, device=DEVICE
        )
        made.values = values
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


class SimulatedDevice(TorchDispatchMode):
    """Context in which a thread can create tensors on the device."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


def _run(function: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    here = [t for t in tensors if isinstance(t, OnDevice)]
    elsewhere = [t for t in tensors if not isinstance(t, OnDevice) and t.dim()]
    if here and elsewhere and function not in _COPIES:
        raise RuntimeError(f"{function}: expected all tensors on the same device, found {DEVICE} and cpu")
    target = kwargs.get("device")
    on_device = bool(here) if target is None else torch.device(target).type == DEVICE.type
    if function is torch.ops.aten.copy_.default:
        on_device = isinstance(args[0], OnDevice)
    inner_kwargs = {**kwargs, "device": torch.device("cpu")} if target is not None else kwargs
    known = {id(t.values): t for t in here}
    inner_args, inner_kwargs = pytree.tree_map_only(OnDevice, lambda t: t.values, (args, inner_kwargs))
    if function is torch.ops.aten._to_copy.default and bool(here) != on_device:
        found = function(*inner_args, **inner_kwargs).clone()
    else:
        found = function(*inner_args, **inner_kwargs)

    def place(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) in known:  # an operation in place
            return known[id(tensor)]
        return OnDevice(tensor) if on_device else tensor

    return pytree.tree_map_only(torch.Tensor, place, found)


def install(monkeypatch: Any) -> None:
    """Make the device the only one that programs of split training find."""
    cpu, generator, forked = torch.device("cpu"), torch.Generator, devices.forked_generators
    monkeypatch.setattr("farshore.engines.split.placement.choose_device", lambda name: DEVICE)
    monkeypatch.setattr(
        "farshore.engines.split.placement.autocast", lambda device, precision: devices.autocast(cpu, precision)
    )
    # Random numbers on the device are those of the CPU.
    monkeypatch.setattr(torch, "Generator", lambda device=None: generator())
    monkeypatch.setattr("farshore.engines.split.seeded_dropout.forked_generators", lambda device: forked(cpu))
