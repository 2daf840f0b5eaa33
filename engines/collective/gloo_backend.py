"""A process group whose ranks talk node to node (gloo), with an account of what each collective moves.

gloo talks in plain text and listens on a port of its own: for one machine, or a network that is trusted.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import (
    AllgatherOptions,
    AllreduceCoalescedOptions,
    AllreduceOptions,
    AllToAllOptions,
    BarrierOptions,
    BroadcastOptions,
    ProcessGroupGloo,
    Work,
)

from .volumes import all_gather_numbers, all_reduce_numbers, broadcast_copies, gloo_reduce_numbers


@dataclass
class Moved:
    """What this rank sent to others in collectives of one kind."""

    calls: int = 0
    bytes: int = 0


#: By kind, since :func:`taken` was called last; one process is one rank.
_MOVED: dict[str, Moved] = defaultdict(Moved)


#: Connections that gloo has made, by descriptor: what :func:`hang_up` ends.
_CONNECTIONS: dict[int, tuple[object, object]] = {}


def hang_up() -> None:
    """End all collectives under way, with an error; from any thread.

    Gloo has no way to interrupt one that waits for a rank which waits for another: its ``abort`` leaves them waiting.
    So the connections beneath them are shut down.
    """
    now = _connections()
    for descriptor, ends in _CONNECTIONS.items():
        if now.get(descriptor) == ends:  # else it was closed, and its number is another's
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as found:
                found.shutdown(socket.SHUT_RDWR)
    _CONNECTIONS.clear()


def _connections() -> dict[int, tuple[object, object]]:
    """This process' TCP connections: descriptor -> both addresses."""
    found = psutil.Process().net_connections(kind="tcp")
    return {c.fd: (c.laddr, c.raddr) for c in found if c.fd >= 0 and c.raddr}


def taken() -> dict[str, Moved]:
    """What was sent since the last call."""
    found = dict(_MOVED)
    _MOVED.clear()
    return found


class GlooGroup(dist.ProcessGroup):
    """Gloo, counted.

    Parameters
    ----------
    gloo : ProcessGroupGloo
    rank, size : int
    """

    def __init__(self, gloo: Any, rank: int, size: int) -> None:
        super().__init__(rank, size)
        self._gloo, self._me, self._size = gloo, rank, size

    def getBackendName(self) -> str:  # noqa: N802 - torch's name
        """Of the backend."""
        return "peers"

    # Names, arguments and results are torch's, see torch.distributed.ProcessGroup.

    def allreduce(self, tensors: list[Tensor], opts: Any = None) -> Work:  # type: ignore[override]
        self._count("all_reduce", tensors, lambda n: all_reduce_numbers(n, self._size, self._me))
        work: Work = self._gloo.allreduce(tensors, opts or AllreduceOptions())
        return work

    def allreduce_coalesced(self, tensors: list[Tensor], opts: Any = None) -> Work:
        self._count("all_reduce", tensors, lambda n: all_reduce_numbers(n, self._size, self._me))
        work: Work = self._gloo.allreduce_coalesced(tensors, opts or AllreduceCoalescedOptions())
        return work

    def reduce(self, tensors: list[Tensor], opts: Any = None) -> Work:  # type: ignore[override]
        root = opts.rootRank
        self._count("reduce", tensors, lambda n: gloo_reduce_numbers(n, self._size, self._me, root))
        work: Work = self._gloo.reduce(tensors, opts)
        return work

    def broadcast(self, tensors: list[Tensor], opts: Any = None) -> Work:  # type: ignore[override]
        opts = opts or BroadcastOptions()
        copies = broadcast_copies(self._size, self._me, opts.rootRank)
        self._count("broadcast", tensors, lambda n: copies * n)
        work: Work = self._gloo.broadcast(tensors, opts)
        return work

    def allgather(  # type: ignore[override]
        self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None
    ) -> Work:
        self._count("all_gather", inputs, lambda n: all_gather_numbers(n, self._size))
        work: Work = self._gloo.allgather(outputs, inputs, opts or AllgatherOptions())
        return work

    def alltoall_base(
        self, output: Tensor, given: Tensor, output_sizes: list[int], input_sizes: list[int], opts: Any = None
    ) -> Work:
        row = given[0].numel() if given.dim() > 1 and len(given) else 1
        own = input_sizes[self._me] * row if input_sizes else given.numel() // self._size
        self._count("all_to_all", [given], lambda n: n - own)
        work: Work = self._gloo.alltoall_base(output, given, output_sizes, input_sizes, opts or AllToAllOptions())
        return work

    def send(self, tensors: list[Tensor], target: int, tag: int) -> Work:
        self._count("send", tensors, lambda n: n)
        work: Work = self._gloo.send(tensors, target, tag)
        return work

    def recv(self, tensors: list[Tensor], source: int, tag: int) -> Work:
        work: Work = self._gloo.recv(tensors, source, tag)
        return work

    def barrier(self, opts: Any = None) -> Work:
        work: Work = self._gloo.barrier(opts or BarrierOptions())
        return work

    def _count(self, kind: str, tensors: Sequence[Tensor], numbers: Any) -> None:
        moved = _MOVED[kind]
        moved.calls += 1
        moved.bytes += sum(numbers(tensor.numel()) * tensor.element_size() for tensor in tensors)


def register() -> None:
    """Make ``peers`` a backend of :func:`torch.distributed.init_process_group`."""
    if not hasattr(dist.Backend, "PEERS"):
        dist.Backend.register_backend("peers", _make, extended_api=True, devices=["cpu"])


def _make(options: Any, _: Any) -> GlooGroup:
    before = _connections()
    gloo = ProcessGroupGloo(options.store, options.group_rank, options.group_size, options.timeout)
    _CONNECTIONS.update({fd: ends for fd, ends in _connections().items() if before.get(fd) != ends})
    return GlooGroup(gloo, options.group_rank, options.group_size)
