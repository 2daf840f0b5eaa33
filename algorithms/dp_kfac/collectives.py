"""Collectives of ``torch.distributed`` with byte counters by phase."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ...engines.collective.volumes import all_reduce_elements, broadcast_copies


@dataclass
class Traffic:
    """Bytes that one rank sent and received in one phase, and the number of calls."""

    sent: int = 0
    received: int = 0
    calls: int = 0


class CompletedWork:
    """The handle of a collective on a single rank, which needs no communication."""

    def wait(self) -> None:
        """Return at once."""


class Collectives:
    """The collectives that K-FAC needs, on one process group, with byte counters.

    Parameters
    ----------
    group : ProcessGroup, optional
        Default: the default group; without one, this process is the only rank and nothing is sent.

    Notes
    -----
    Bytes are those of the algorithms with the least traffic: ring all-reduce, binomial-tree broadcast, and a reduce of
    (P - 1) n elements. gloo achieves them except for ``reduce``, which sends (P - 1)(1 + 1/P) n elements or more.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        alone = group is None and not (dist.is_available() and dist.is_initialized())
        self.ranks: int = 1 if alone else dist.get_world_size(group)
        self.rank: int = 0 if alone else dist.get_rank(group)
        self.backend: str = "" if alone else str(dist.get_backend(group))
        #: Device on which the backend expects tensors.
        self.device = torch.device("cuda" if self.backend == "nccl" else "cpu")
        self.traffic: dict[str, Traffic] = defaultdict(Traffic)

    def all_reduce(self, tensor: Tensor, phase: str, *, minimum: bool = False) -> Any:
        """Sum over all ranks, or take the minimum, in place; asynchronous."""
        if self.ranks == 1:
            return CompletedWork()
        size = all_reduce_elements(tensor.numel(), self.ranks, self.rank) * tensor.element_size()
        self._count(phase, size, size)
        operation = dist.ReduceOp.MIN if minimum else dist.ReduceOp.SUM
        return dist.all_reduce(tensor, operation, group=self.group, async_op=True)

    def reduce(self, tensor: Tensor, target: int, phase: str) -> Any:
        """Sum over all ranks at rank ``target``, in place there; asynchronous."""
        if self.ranks == 1:
            return CompletedWork()
        size = tensor.numel() * tensor.element_size()
        is_target = self.rank == target
        self._count(phase, 0 if is_target else size, (self.ranks - 1) * size if is_target else 0)
        return dist.reduce(tensor, group=self.group, group_dst=target, async_op=True)

    def broadcast(self, tensor: Tensor, source: int, phase: str) -> Any:
        """Copy from one rank to all; asynchronous."""
        if self.ranks == 1:
            return CompletedWork()
        size = tensor.numel() * tensor.element_size()
        copies = broadcast_copies(self.ranks, self.rank, source)
        self._count(phase, copies * size, 0 if self.rank == source else size)
        return dist.broadcast(tensor, group=self.group, group_src=source, async_op=True)

    def all_to_all(self, tensor: Tensor, sizes: Sequence[int], phase: str) -> tuple[Tensor, Any]:
        """Send each rank its part of a tensor and receive this rank's part of every rank's tensor; asynchronous.

        Parameters
        ----------
        tensor : Tensor
            Flat; the parts in rank order, of ``sizes`` elements.
        sizes : sequence of int
            The same on all ranks.

        Returns
        -------
        received : Tensor
            (ranks, own size), valid after waiting.
        work : Work
        """
        own = sizes[self.rank]
        if self.ranks == 1:
            return tensor.reshape(1, -1), CompletedWork()
        received = tensor.new_empty(self.ranks * own)
        element_size = tensor.element_size()
        self._count(phase, (tensor.numel() - own) * element_size, (self.ranks - 1) * own * element_size)
        work = dist.all_to_all_single(
            received, tensor, [own] * self.ranks, list(sizes), group=self.group, async_op=True
        )
        return received.view(self.ranks, own), work

    def point_to_point(self, tensor: Tensor, source: int, target: int, phase: str) -> Any:
        """Copy from rank ``source`` to rank ``target``; called by these two only. Asynchronous."""
        size = tensor.numel() * tensor.element_size()
        if self.rank == source:
            self._count(phase, size, 0)
            return dist.isend(tensor, group=self.group, group_dst=target)
        self._count(phase, 0, size)
        return dist.irecv(tensor, group=self.group, group_src=source)

    def counters(self) -> dict[str, dict[str, int]]:
        """Return ``{phase: {sent, received, calls}}``: bytes and calls of this rank so far."""
        return {phase: dict(vars(traffic)) for phase, traffic in self.traffic.items()}

    def _count(self, phase: str, sent: int, received: int) -> None:
        traffic = self.traffic[phase]
        traffic.sent += sent
        traffic.received += received
        traffic.calls += 1


def upper_triangle(matrix: Tensor) -> Tensor:
    """Return the n (n + 1) / 2 elements of a symmetric matrix's upper triangle."""
    rows, columns = torch.triu_indices(*matrix.shape, device=matrix.device)
    return matrix[rows, columns]


def from_upper_triangle(elements: Tensor, side: int) -> Tensor:
    """Return the symmetric (side, side) matrix of an upper triangle."""
    matrix = elements.new_empty(side, side)
    rows, columns = torch.triu_indices(side, side, device=elements.device)
    matrix[rows, columns] = elements
    matrix[columns, rows] = elements
    return matrix
