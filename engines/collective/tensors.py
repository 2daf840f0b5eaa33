"""Conversion between torch tensors and wire tensors, and between an accelerator's memory and the host's."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from ...core.message import Array, Tensor
from ...models.torch_internals import Work

#: Devices whose tensors the process groups accept; what travels is copied to and from the host's memory.
DEVICES = ["cpu", "cuda", "mps"]


def to_wire(tensor: torch.Tensor) -> Tensor:
    """Convert a torch tensor of any device for a message; bfloat16 is sent as its uint16 bit pattern."""
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
    """Overwrite ``target`` with a tensor of the same number of elements, maybe of another device."""
    with torch.no_grad():
        target.copy_(values.view(target.shape))


def synchronize(tensors: Iterable[torch.Tensor]) -> None:
    """Wait until all work queued on the accelerators of ``tensors`` is done; without effect for the CPU.

    Another thread may then write to the tensors, or read what was copied into them, whatever its stream is.
    """
    for device in {tensor.device for tensor in tensors if tensor.device.type != "cpu"}:
        torch.accelerator.synchronize(device)


class HostCopies:
    """Copies in the host's memory of a collective's tensors; those of the CPU are used as they are.

    Tested with a tensor type that reports another device and refuses to be mixed with CPU tensors, since gloo and
    the wire are the same for every accelerator; streams and events of a real one are not tested.
    """

    def __init__(self) -> None:
        self._copies: list[tuple[torch.Tensor, torch.Tensor]] = []

    def source(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return ``tensor`` on the host, to be read."""
        return tensor if tensor.device.type == "cpu" else tensor.detach().cpu().contiguous()

    def target(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return ``tensor`` on the host, to be read and written; :meth:`copy_back` copies what was written."""
        host = self.source(tensor)
        if host is not tensor:
            self._copies.append((tensor, host))
        return host

    def copy_back(self) -> list[torch.Tensor]:
        """Copy the targets' values to their devices, and return those targets."""
        targets = [target for target, _ in self._copies]
        for target, host in self._copies:
            copy_into(target, host)
        synchronize(targets)
        return targets

    def follow(self, work: Work) -> Work:
        """Return a work that ends with :meth:`copy_back` once ``work`` has ended."""
        return _StagedWork(work, self) if self._copies else work


class _StagedWork(Work):
    """A collective on host copies that are copied back when it is complete."""

    def __init__(self, work: Work, copies: HostCopies) -> None:
        super().__init__()
        self._work, self._copies = work, copies
        self._lock = threading.Lock()
        self._results: list[torch.Tensor] | None = None

    def wait(self, timeout: Any = None) -> bool:
        """Block until the results are in the collective's tensors; errors as those of gloo."""
        self._work.wait() if timeout is None else self._work.wait(timeout)
        self._copy_once()
        return True

    def get_future(self) -> torch.futures.Future[list[torch.Tensor]]:
        """Return a future of the collective's tensors."""

        def finish(done: torch.futures.Future[Any]) -> list[torch.Tensor]:
            done.value()  # raises the collective's error
            return self._copy_once()

        return self._work.get_future().then(finish)

    def is_completed(self) -> bool:
        """Return whether :meth:`wait` would not wait for other ranks."""
        return self._work.is_completed()

    def _copy_once(self) -> list[torch.Tensor]:
        # Once: the caller may have changed its tensors since.
        with self._lock:
            if self._results is None:
                self._results = self._copies.copy_back()
            return self._results
