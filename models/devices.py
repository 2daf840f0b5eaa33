"""The one place where a program's device and precision are chosen."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from ..core.devices import DeviceName, Precision
from ..core.errors import ConfigError

#: Held while the generators are forked: programs of an in-process run are threads, the generators one per process.
_generators = threading.RLock()
#: Of the thread that holds the lock: the devices of each fork, innermost last.
_held = threading.local()

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
    """Restore torch's global generators of the CPU and of ``device`` afterwards; one thread at a time."""
    accelerated = device.type != "cpu"
    devices, kind = ([device.index or 0], device.type) if accelerated else ([], "cuda")
    with _generators, torch.random.fork_rng(devices, device_type=kind):
        stack = _held.__dict__.setdefault("stack", [])
        stack.append((devices, kind))
        try:
            yield
        finally:
            stack.pop()


@contextmanager
def released_generators() -> Iterator[None]:
    """Inside :func:`forked_generators`, let other threads fork the generators meanwhile; elsewhere without effect.

    For waits on other threads, which may need the generators themselves.
    """
    stack = getattr(_held, "stack", None)
    if not stack:
        yield
        return
    devices, kind = stack[-1]
    with torch.random.fork_rng(devices, device_type=kind):
        for _ in stack:
            _generators.release()
        try:
            yield
        finally:
            for _ in stack:
                _generators.acquire()


@contextmanager
def seeded_generators(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch's global generators of the CPU and of ``device``, and restore them afterwards."""
    with forked_generators(device):
        seed_generators(device, seed)
        yield


def seed_generators(device: torch.device, seed: int) -> None:
    """Seed torch's global generators of the CPU and of ``device``; a fraction of the cost of ``torch.manual_seed``."""
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def _available(name: str) -> bool:
    if name == "cuda":
        return torch.cuda.is_available()
    if name == "mps":
        return torch.backends.mps.is_available()
    return name == "cpu"
