"""How the ranks of a row-sharded training communicate; a rank alone sends nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ...data.graph_set import Ints


class Ranks(Protocol):
    """The collectives that training needs."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def total(self, x: Tensor) -> Tensor:
        """Return the sum over all ranks, without gradients."""

    def gathered(self, x: Tensor) -> list[Tensor]:
        """Return what all ranks gave; the tensors have the same shape."""

    def exchanged(self, parts: Sequence[Tensor], rows: Sequence[int]) -> list[Tensor]:
        """Send ``parts[r]`` (n, d) to rank r; return what each rank sent here, ``rows[r]`` rows of the same width."""

    def broadcast(self, x: Tensor) -> Tensor:
        """Return rank 0's tensor; others give one of the same shape."""


class Alone:
    """The only rank."""

    rank, size = 0, 1

    def total(self, x: Tensor) -> Tensor:
        """Return ``x``."""
        return x.detach()

    def gathered(self, x: Tensor) -> list[Tensor]:
        """Return ``x``."""
        return [x]

    def exchanged(self, parts: Sequence[Tensor], rows: Sequence[int]) -> list[Tensor]:
        """Return the part for this rank."""
        return list(parts)

    def broadcast(self, x: Tensor) -> Tensor:
        """Return ``x``."""
        return x


class GroupRanks:
    """The ranks of the default process group of ``torch.distributed``.

    Parameters
    ----------
    rank, size : int
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    def total(self, x: Tensor) -> Tensor:
        """Return the sum over all ranks."""
        summed = x.detach().clone()
        dist.all_reduce(summed)
        return summed

    def gathered(self, x: Tensor) -> list[Tensor]:
        """Return what all ranks gave."""
        found = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(found, x.detach().contiguous())
        return found

    def exchanged(self, parts: Sequence[Tensor], rows: Sequence[int]) -> list[Tensor]:
        """Send each rank its part and return what all ranks sent here."""
        given = torch.cat([part.detach() for part in parts])
        received = given.new_empty((sum(rows), *given.shape[1:]))
        dist.all_to_all_single(received, given.contiguous(), list(rows), [len(part) for part in parts])
        return list(torch.split(received, list(rows)))

    def broadcast(self, x: Tensor) -> Tensor:
        """Return rank 0's tensor."""
        sent = x.detach().clone()
        dist.broadcast(sent, 0)
        return sent


class _SharedTotal(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, ranks: Ranks) -> Tensor:
        return ranks.total(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def shared_total(x: Tensor, ranks: Ranks) -> Tensor:
    """Return the sum over all ranks, whose gradient flows to this rank's part.

    A loss that all ranks compute from such sums has the gradient of one machine, once the ranks' gradients are added.
    """
    total: Tensor = x if ranks.size == 1 else _SharedTotal.apply(x, ranks)
    return total


class Rows:
    """Which rank holds which nodes.

    Parameters
    ----------
    owner : int64 array, shape [N]
        Rank of each node.
    rank, size : int
        This rank, and the number of ranks.

    Attributes
    ----------
    own : int64 array, shape [n]
        Nodes of this rank, ascending; the order of its rows.
    place : int64 array, shape [N]
        Index of each node among the rows of its rank.
    counts : int64 array, shape [ranks]
    """

    def __init__(self, owner: Ints, rank: int, size: int) -> None:
        self.owner, self.rank, self.size = owner, rank, size
        self.own = np.flatnonzero(owner == rank)
        self.counts = np.bincount(owner, minlength=size)
        order = np.argsort(owner, kind="stable")
        starts = np.cumsum(self.counts) - self.counts
        self.place = np.empty(len(owner), np.int64)
        self.place[order] = np.arange(len(owner)) - np.repeat(starts, self.counts)

    @property
    def nodes(self) -> int:
        """Number of nodes of all ranks, N."""
        return len(self.owner)

    @classmethod
    def blocks(cls, nodes: int, rank: int, size: int) -> Rows:
        """Divide nodes into contiguous blocks of equal size, up to one node."""
        return cls(np.arange(nodes) * size // nodes, rank, size)

    def subset(self, kept: Ints) -> Rows:
        """Return the division of some nodes only, which are numbered anew in ascending order."""
        return Rows(self.owner[kept], self.rank, self.size)

    def collected(self, x: Tensor, ranks: Ranks) -> Tensor:
        """Return the rows of all nodes (N, …) on every rank, given this rank's (n, …); an all-gather."""
        if self.size == 1:
            return x
        most = int(self.counts.max())
        padded = x.new_zeros((most, *x.shape[1:]))
        padded[: len(x)] = x
        parts = ranks.gathered(padded)
        return self._ordered(torch.cat([part[:count] for part, count in zip(parts, self.counts, strict=True)]))

    def on_first(self, x: Tensor, ranks: Ranks) -> Tensor | None:
        """Return the rows of all nodes on rank 0, and None on others."""
        if self.size == 1:
            return x
        nothing = x.new_empty((0, *x.shape[1:]))
        parts = [x if rank == 0 else nothing for rank in range(self.size)]
        received = ranks.exchanged(parts, self.counts.tolist() if self.rank == 0 else [0] * self.size)
        return self._ordered(torch.cat(received)) if self.rank == 0 else None

    def _ordered(self, by_rank: Tensor) -> Tensor:
        starts = np.concatenate([[0], np.cumsum(self.counts)])
        return by_rank[torch.from_numpy(starts[self.owner] + self.place).to(by_rank.device)]
