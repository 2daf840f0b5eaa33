"""Exchange of factors, inverses and preconditioned gradients between ranks, as far as a scheme needs it.

See ``docs/methods/dp_kfac.md``, section 8. Gradients are exchanged in :mod:`~farshore.algorithms.dp_kfac.exchange`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, cast

import torch
import torch.distributed as dist
from torch import Tensor

from .collectives import Collectives, from_upper_triangle, upper_triangle
from .layers import Layer

#: Factors A and G of layers, by layer name.
Factors: TypeAlias = dict[str, tuple[Tensor, Tensor]]


class Grid:
    """KAISA's grid of ranks (arXiv 2107.01739): ``workers`` rows and ``ranks / workers`` columns, in row-major order.

    The column of a layer's owner preconditions the layer (KAISA: gradient workers). In each row, the rank of that
    column broadcasts the result to the others (gradient receivers).

    Parameters
    ----------
    collectives : Collectives
        All ranks.
    workers : int
        Ranks that precondition a layer.
    """

    def __init__(self, collectives: Collectives, workers: int) -> None:
        self.all = collectives
        self.columns = collectives.ranks // workers
        self.column = self._group(workers, lambda rank: rank % self.columns)
        self.row = self._group(self.columns, lambda rank: rank // self.columns)

    def column_of(self, owner: int) -> int:
        """Return the column that preconditions an owner's layers."""
        return owner % self.columns

    def preconditions(self, owner: int) -> bool:
        """Return whether this rank preconditions an owner's layers."""
        return self.column_of(owner) == self.column_of(self.all.rank)

    def rank_in_column(self, owner: int) -> int:
        """Return an owner's rank within its column's group."""
        return owner // self.columns

    def _group(self, size: int, key: Any) -> Collectives | None:
        """Return this rank's group among those with equal ``key(rank)``; None if it has a single member."""
        if size == self.all.ranks:
            return self.all
        if size == 1:
            return None
        global_ranks = dist.get_process_group_ranks(self.all.group)
        own: Collectives | None = None
        for value in sorted({key(rank) for rank in range(self.all.ranks)}):
            # torch requires that every rank creates every group, in the same order.
            group = dist.new_group([global_ranks[rank] for rank in range(self.all.ranks) if key(rank) == value])
            if key(self.all.rank) == value:
                own = Collectives(cast("dist.ProcessGroup", group))
                own.traffic = self.all.traffic
        return own


def average_factors(
    new: Factors,
    layers: Sequence[Layer],
    owners: Mapping[str, int],
    collectives: Collectives,
    *,
    everywhere: bool,
    symmetric: bool,
    limit: int,
) -> Factors:
    """Average the factors of ``layers`` over all ranks.

    A rank without statistics of a layer contributes zeros. A layer without statistics on any rank is not in the result.

    Parameters
    ----------
    new : Factors
        This rank's factors.
    everywhere : bool
        All-reduce; else reduce to each layer's owner, and return the averages only there.
    symmetric : bool
        Send upper triangles.
    limit : int
        Bucket size in bytes.
    """
    pending: list[tuple[Any, Tensor, list[Layer]]] = []
    for owner in [None] if everywhere else sorted({owners[layer.name] for layer in layers}):
        some = [layer for layer in layers if owner is None or owners[layer.name] == owner]
        for bucket in _buckets(some, lambda layer: layer.factor_elements * 4, limit):
            flat = torch.cat([_pack(new.get(layer.name), layer, symmetric) for layer in bucket])
            if owner is None:
                work = collectives.all_reduce(flat, "factors")
            else:
                work = collectives.reduce(flat, owner, "factors")
            if owner is None or owner == collectives.rank:
                pending.append((work, flat, bucket))
            else:
                pending.append((work, flat, []))
    means: Factors = {}
    for work, flat, bucket in pending:
        work.wait()
        flat /= collectives.ranks
        rest = flat
        for layer in bucket:
            a, rest = _unpack(rest, layer.a, symmetric)
            g, rest = _unpack(rest, layer.g, symmetric)
            if a.trace() > 0 or g.trace() > 0:
                means[layer.name] = (a, g)
    return means


def broadcast_preconditioned(
    own: dict[str, Tensor],
    layers: Sequence[Layer],
    owners: Mapping[str, int],
    grid: Grid,
    *,
    dtype: torch.dtype,
    limit: int,
    like: Tensor,
) -> Iterator[tuple[Layer, Tensor]]:
    """Yield each layer's preconditioned gradient (g, a), on every rank.

    Parameters
    ----------
    own : dict of Tensor
        Those that this rank computed, already rounded to ``dtype``.
    dtype : dtype
        Type in which they are sent.
    limit : int
        Bucket size in bytes.
    like : Tensor
        Has the device and dtype of the result.
    """
    row = grid.row
    if row is None:
        for layer in layers:
            yield layer, own[layer.name]
        return
    pending: list[tuple[Any, Tensor, list[Layer]]] = []
    for source in range(grid.columns):
        some = [layer for layer in layers if grid.column_of(owners[layer.name]) == source]
        for bucket in _buckets(some, lambda layer: layer.gradient_elements * dtype.itemsize, limit):
            if source == row.rank:
                flat = torch.cat([own[layer.name].reshape(-1) for layer in bucket]).to(dtype)
            else:
                flat = like.new_empty(sum(layer.gradient_elements for layer in bucket), dtype=dtype)
            pending.append((row.broadcast(flat, source, "preconditioned"), flat, bucket))
    for work, flat, bucket in pending:
        work.wait()
        for layer, part in zip(
            bucket, torch.split(flat.to(like.dtype), [layer.gradient_elements for layer in bucket]), strict=True
        ):
            yield layer, part.view(layer.g, layer.a)


def _buckets(layers: Iterable[Layer], size: Any, limit: int) -> Iterator[list[Layer]]:
    bucket: list[Layer] = []
    total = 0
    for layer in layers:
        if bucket and total + size(layer) > limit:
            yield bucket
            bucket, total = [], 0
        bucket.append(layer)
        total += size(layer)
    if bucket:
        yield bucket


def _pack(factors: tuple[Tensor, Tensor] | None, layer: Layer, symmetric: bool) -> Tensor:
    if factors is None:
        weight = layer.module.weight
        dtype = weight.dtype if weight.dtype == torch.float64 else torch.float32
        factors = (
            torch.zeros(layer.a, layer.a, dtype=dtype, device=weight.device),
            torch.zeros(layer.g, layer.g, dtype=dtype, device=weight.device),
        )
    return torch.cat([upper_triangle(f) if symmetric else f.reshape(-1) for f in factors])


def _unpack(flat: Tensor, side: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Return the first factor of a packed vector and the rest of the vector."""
    elements = side * (side + 1) // 2 if symmetric else side * side
    part = flat[:elements]
    return from_upper_triangle(part, side) if symmetric else part.view(side, side).clone(), flat[elements:]
