"""A gloo process group, node to node, that counts the bytes of each collective.

Tensors of an accelerator are copied to the host for the collective, and the results back: gloo's own copies are part
of CUDA builds alone, and mps has none.

gloo does not encrypt and opens a port of its own: use it on one machine or in a trusted network.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch.distributed as dist
from torch import Tensor

from ...models.torch_internals import (
    AllgatherOptions,
    AllreduceCoalescedOptions,
    AllreduceOptions,
    AllToAllOptions,
    BarrierOptions,
    BroadcastOptions,
    ProcessGroupGloo,
    Work,
)
from .tensors import DEVICES, HostCopies
from .volumes import all_gather_elements, all_reduce_elements, broadcast_copies, gloo_reduce_elements


@dataclass
class SentCounter:
    """Calls and bytes that this rank sent in collectives of one kind."""

    calls: int = 0
    bytes: int = 0


#: Counters by kind since the last :func:`drain_counters`; one process is one rank.
_COUNTERS: dict[str, SentCounter] = defaultdict(SentCounter)


#: gloo's connections by file descriptor, for :func:`abort_connections`.
_CONNECTIONS: dict[int, tuple[object, object]] = {}


def abort_connections() -> None:
    """Fail all collectives in progress by shutting down gloo's connections; may be called from any thread.

    gloo's own ``abort`` does not interrupt a collective that waits for a rank which itself waits for another one.
    """
    now = _connections()
    for descriptor in list(_CONNECTIONS):  # a copy: another thread may add or remove some meanwhile
        addresses = _CONNECTIONS.pop(descriptor, None)
        if addresses is not None and now.get(descriptor) == addresses:  # else it was closed and the descriptor reused
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as found:
                found.shutdown(socket.SHUT_RDWR)


def _connections() -> dict[int, tuple[object, object]]:
    """Return this process' TCP connections: file descriptor -> local and remote address."""
    found = psutil.Process().net_connections(kind="tcp")
    return {c.fd: (c.laddr, c.raddr) for c in found if c.fd >= 0 and c.raddr}


def drain_counters() -> dict[str, SentCounter]:
    """Return the counters by kind of collective and reset them."""
    found = dict(_COUNTERS)
    _COUNTERS.clear()
    return found


class GlooGroup(dist.ProcessGroup):
    """A gloo group that counts what this rank sends.

    Parameters
    ----------
    gloo : ProcessGroupGloo
    rank, size : int
    """

    def __init__(self, gloo: Any, rank: int, size: int) -> None:
        super().__init__(rank, size)
        self._gloo, self._rank, self._size = gloo, rank, size

    def getBackendName(self) -> str:  # noqa: N802 - torch's name
        """Return the backend's name."""
        return "peers"

    # Names, arguments and results are those of torch.distributed.ProcessGroup.

    def allreduce(self, tensors: list[Tensor], opts: Any = None) -> Work:  # type: ignore[override]
        self._count("all_reduce", tensors, lambda n: all_reduce_elements(n, self._size, self._rank))
        return self._in_place(self._gloo.allreduce, tensors, opts or AllreduceOptions())

    def allreduce_coalesced(self, tensors: list[Tensor], opts: Any = None) -> Work:
        self._count("all_reduce", tensors, lambda n: all_reduce_elements(n, self._size, self._rank))
        return self._in_place(self._gloo.allreduce_coalesced, tensors, opts or AllreduceCoalescedOptions())

    def reduce(self, tensors: list[Tensor], opts: Any = None) -> Work:  # type: ignore[override]
        root = opts.rootRank
        self._count("reduce", tensors, lambda n: gloo_reduce_elements(n, self._size, self._rank, root))
        return self._in_place(self._gloo.reduce, tensors, opts)

    def broadcast(self, tensors: list[Tensor], opts: Any = None) -> Work:  # type: ignore[override]
        opts = opts or BroadcastOptions()
        copies = broadcast_copies(self._size, self._rank, opts.rootRank)
        self._count("broadcast", tensors, lambda n: copies * n)
        return self._in_place(self._gloo.broadcast, tensors, opts)

    def allgather(  # type: ignore[override]
        self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None
    ) -> Work:
        self._count("all_gather", inputs, lambda n: all_gather_elements(n, self._size))
        host = HostCopies()
        targets = [[host.target(tensor) for tensor in tensors] for tensors in outputs]
        sources = [host.source(tensor) for tensor in inputs]
        return host.follow(self._gloo.allgather(targets, sources, opts or AllgatherOptions()))

    def alltoall_base(
        self, output: Tensor, given: Tensor, output_sizes: list[int], input_sizes: list[int], opts: Any = None
    ) -> Work:
        row = given[0].numel() if given.dim() > 1 and len(given) else 1
        own = input_sizes[self._rank] * row if input_sizes else given.numel() // self._size
        self._count("all_to_all", [given], lambda n: n - own)
        host = HostCopies()
        target, source = host.target(output), host.source(given)
        opts = opts or AllToAllOptions()
        return host.follow(self._gloo.alltoall_base(target, source, output_sizes, input_sizes, opts))

    def send(self, tensors: list[Tensor], target: int, tag: int) -> Work:
        self._count("send", tensors, lambda n: n)
        host = HostCopies()
        work: Work = self._gloo.send([host.source(tensor) for tensor in tensors], target, tag)
        return work

    def recv(self, tensors: list[Tensor], source: int, tag: int) -> Work:
        return self._in_place(self._gloo.recv, tensors, source, tag)

    def barrier(self, opts: Any = None) -> Work:
        work: Work = self._gloo.barrier(opts or BarrierOptions())
        return work

    def _in_place(self, collective: Callable[..., Work], tensors: Sequence[Tensor], *given: Any) -> Work:
        """Start a collective that reads and writes ``tensors``."""
        host = HostCopies()
        return host.follow(collective([host.target(tensor) for tensor in tensors], *given))

    def _count(self, kind: str, tensors: Sequence[Tensor], elements_sent: Any) -> None:
        counter = _COUNTERS[kind]
        counter.calls += 1
        counter.bytes += sum(elements_sent(tensor.numel()) * tensor.element_size() for tensor in tensors)


def register() -> None:
    """Register ``peers`` as a backend of :func:`torch.distributed.init_process_group`."""
    if not hasattr(dist.Backend, "PEERS"):
        dist.Backend.register_backend("peers", _make, extended_api=True, devices=DEVICES)


def _make(options: Any, _: Any) -> GlooGroup:
    before = _connections()
    gloo = ProcessGroupGloo(options.store, options.group_rank, options.group_size, options.timeout)
    _CONNECTIONS.update({fd: addresses for fd, addresses in _connections().items() if before.get(fd) != addresses})
    return GlooGroup(gloo, options.group_rank, options.group_size)
