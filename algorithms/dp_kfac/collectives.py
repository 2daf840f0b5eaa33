"""torch.distributed with an account: bytes of every collective, by phase, as the algorithm beneath moves them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ...engines.collective.volumes import all_reduce_numbers, broadcast_copies


@dataclass
class Traffic:
    """What one rank sent and received in one phase, in bytes."""

    sent: int = 0
    received: int = 0
    calls: int = 0


class Done:
    """A collective of one rank, which is none."""

    def wait(self) -> None:
        """Nothing to wait for."""


class Collectives:
    """The collectives that K-FAC needs, on one process group, counted.

    Parameters
    ----------
    group : ProcessGroup, optional
        Default: the world, if there is one; else this process is alone and nothing is sent.

    Notes
    -----
    The count is of the algorithms that move the least: ring all-reduce, binomial broadcast, reduce to one root with
    (P - 1) n. gloo keeps to it but for ``reduce``, which moves (P - 1)(1 + 1/P) n and more.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        alone = group is None and not (dist.is_available() and dist.is_initialized())
        self.ranks: int = 1 if alone else dist.get_world_size(group)
        self.rank: int = 0 if alone else dist.get_rank(group)
        self.backend: str = "" if alone else str(dist.get_backend(group))
        #: Where tensors must be for this backend.
        self.device = torch.device("cuda" if self.backend == "nccl" else "cpu")
        self.traffic: dict[str, Traffic] = defaultdict(Traffic)

    def all_reduce(self, tensor: Tensor, phase: str, *, least: bool = False) -> Any:
        """Sum over all ranks, or the least of them, in place; asynchronous."""
        if self.ranks == 1:
            return Done()
        moved = all_reduce_numbers(tensor.numel(), self.ranks, self.rank) * tensor.element_size()
        self._count(phase, moved, moved)
        operation = dist.ReduceOp.MIN if least else dist.ReduceOp.SUM
        return dist.all_reduce(tensor, operation, group=self.group, async_op=True)

    def reduce(self, tensor: Tensor, target: int, phase: str) -> Any:
        """Sum over all ranks at one of them, in place there; asynchronous."""
        if self.ranks == 1:
            return Done()
        size = tensor.numel() * tensor.element_size()
        here = self.rank == target
        self._count(phase, 0 if here else size, (self.ranks - 1) * size if here else 0)
        return dist.reduce(tensor, group=self.group, group_dst=target, async_op=True)

    def broadcast(self, tensor: Tensor, source: int, phase: str) -> Any:
        """Copy from one rank to all; asynchronous."""
        if self.ranks == 1:
            return Done()
        size = tensor.numel() * tensor.element_size()
        copies = broadcast_copies(self.ranks, self.rank, source)
        self._count(phase, copies * size, 0 if self.rank == source else size)
        return dist.broadcast(tensor, group=self.group, group_src=source, async_op=True)

    def all_to_all(self, tensor: Tensor, sizes: Sequence[int], phase: str) -> tuple[Tensor, Any]:
        """Send each rank its part; receive as much from each as this rank's own part is.

        Parameters
        ----------
        tensor : Tensor
            Parts in the order of ranks, ``sizes`` numbers each.

        Returns
        -------
        received : Tensor
            (ranks, own size), valid after waiting.
        work : Work
        """
        own = sizes[self.rank]
        if self.ranks == 1:
            return tensor.reshape(1, -1), Done()
        received = tensor.new_empty(self.ranks * own)
        one = tensor.element_size()
        self._count(phase, (tensor.numel() - own) * one, (self.ranks - 1) * own * one)
        work = dist.all_to_all_single(
            received, tensor, [own] * self.ranks, list(sizes), group=self.group, async_op=True
        )
        return received.view(self.ranks, own), work

    def pass_on(self, tensor: Tensor, source: int, target: int, phase: str) -> Any:
        """Copy from one rank to one other; only those two call it. Asynchronous."""
        size = tensor.numel() * tensor.element_size()
        if self.rank == source:
            self._count(phase, size, 0)
            return dist.isend(tensor, group=self.group, group_dst=target)
        self._count(phase, 0, size)
        return dist.irecv(tensor, group=self.group, group_src=source)

    def told(self) -> dict[str, dict[str, int]]:
        """``{phase: {sent, received, calls}}``, bytes of this rank since it was made."""
        return {phase: dict(vars(traffic)) for phase, traffic in self.traffic.items()}

    def _count(self, phase: str, sent: int, received: int) -> None:
        traffic = self.traffic[phase]
        traffic.sent += sent
        traffic.received += received
        traffic.calls += 1


def triangle(matrix: Tensor) -> Tensor:
    """Upper triangle of a symmetric matrix, n (n + 1) / 2 numbers."""
    rows, columns = torch.triu_indices(*matrix.shape, device=matrix.device)
    return matrix[rows, columns]


def from_triangle(numbers: Tensor, side: int) -> Tensor:
    """The symmetric matrix of an upper triangle."""
    matrix = numbers.new_empty(side, side)
    rows, columns = torch.triu_indices(side, side, device=numbers.device)
    matrix[rows, columns] = numbers
    matrix[columns, rows] = numbers
    return matrix
