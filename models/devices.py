"""The one place where a program's device and precision are chosen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from ..core.devices import DeviceName, Precision
from ..core.errors import ConfigError

_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: DeviceName) -> torch.device:
    """Return the device to compute on.

    Raises
    ------
    ConfigError
        This machine does not have it.
    """
    if name == "auto":
        return next(torch.device(each) for each in ("cuda", "mps", "cpu") if _available(each))
    if not _available(name):
        raise ConfigError(f"this machine has no '{name}' device for torch", hint="use device=auto or device=cpu")
    return torch.device(name)


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Return a context that computes with a precision; without effect for ``fp32``."""
    return torch.autocast(device.type, _TYPES[precision], enabled=precision != "fp32")


def gradient_scaler(device: torch.device, precision: Precision, scale: float = 65536.0) -> torch.amp.GradScaler:
    """Return the scaler that keeps gradients of ``fp16`` losses from underflow; without effect for other precisions."""
    return torch.amp.GradScaler(device.type, scale, enabled=precision == "fp16")


@contextmanager
def forked_generators(device: torch.device) -> Iterator[None]:
    """Restore torch's global generators of the CPU and of ``device`` afterwards."""
    accelerated = device.type != "cpu"
    with torch.random.fork_rng(
        [device.index or 0] if accelerated else [], device_type=device.type if accelerated else "cuda"
    ):
        yield


def _available(name: str) -> bool:
    if name == "cuda":
        return torch.cuda.is_available()
    if name == "mps":
        return torch.backends.mps.is_available()
    return name == "cpu"
