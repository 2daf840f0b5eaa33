"""Where and in which precision a part of a split model computes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

from torch import Tensor, nn

from ...core.devices import ComputeSettings
from ...models.devices import autocast, choose_device

Module = TypeVar("Module", bound=nn.Module)


class Placement:
    """Device and precision of one program's part of a split model.

    Whatever the device and the precision, codes, losses and gradients leave the part in float32 on the CPU.

    Parameters
    ----------
    settings : ComputeSettings

    Raises
    ------
    ConfigError
        This machine does not have the device.
    """

    def __init__(self, settings: ComputeSettings) -> None:
        self.device = choose_device(settings.device)
        self.precision = settings.precision

    def place(self, module: Module) -> Module:
        """Move a module to the device; returns it. Optimizers must be created afterwards."""
        return module.to(self.device)

    def tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return named tensors on the device."""
        return {name: tensor.to(self.device) for name, tensor in tensors.items()}

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context of forward passes: matrix products in the precision, weights in float32."""
        # A context of autocast costs time even without effect.
        return nullcontext() if self.precision == "fp32" else autocast(self.device, self.precision)
