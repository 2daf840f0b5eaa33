"""What crosses besides gradients: factors, where the scheme shares them; inverses; preconditioned gradients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, cast

import torch
import torch.distributed as dist
from torch import Tensor

from .collectives import Collectives, from_triangle, triangle
from .layers import Layer

#: Factors A and G of layers, by name.
Factors: TypeAlias = dict[str, tuple[Tensor, Tensor]]


class Grid:
    """Ranks in rows and columns: a layer is preconditioned by its owner's column, and each row gets it from there.

    KAISA's grid (arXiv 2107.01739): ``workers`` rows, ``ranks / workers`` columns, row by row.
    """

    def __init__(self, collectives: Collectives, workers: int) -> None:
        self.all = collectives
        self.columns = collectives.ranks // workers
        self.column = self._group(workers, lambda rank: rank % self.columns)
        self.row = self._group(self.columns, lambda rank: rank // self.columns)

    def column_of(self, owner: int) -> int:
        """The column that preconditions an owner's layers."""
        return owner % self.columns

    def works_on(self, owner: int) -> bool:
        """Whether this rank preconditions that owner's layers."""
        return self.column_of(owner) == self.column_of(self.all.rank)

    def place_in_column(self, owner: int) -> int:
        """Rank of an owner within its column."""
        return owner // self.columns

    def _group(self, size: int, key: Any) -> Collectives | None:
        """This rank's group of those with one key; None if it is alone."""
        if size == self.all.ranks:
            return self.all
        if size == 1:
            return None
        world = dist.get_process_group_ranks(self.all.group)
        mine: Collectives | None = None
        for value in sorted({key(rank) for rank in range(self.all.ranks)}):
            # Every rank makes every group, in the same order: torch asks for that.
            group = dist.new_group([world[rank] for rank in range(self.all.ranks) if key(rank) == value])
            if key(self.all.rank) == value:
                mine = Collectives(cast("dist.ProcessGroup", group))
                mine.traffic = self.all.traffic
        return mine


def share_factors(
    new: Factors,
    layers: Sequence[Layer],
    owners: Mapping[str, int],
    collectives: Collectives,
    *,
    everywhere: bool,
    symmetric: bool,
    limit: int,
) -> Factors:
    """Means over ranks of the factors of ``layers``, everywhere or at their owners.

    A rank without statistics of a layer adds zeros; a layer of which nobody had any is not in the result.
    """
    due: list[tuple[Any, Tensor, list[Layer]]] = []
    for owner in [None] if everywhere else sorted({owners[layer.name] for layer in layers}):
        some = [layer for layer in layers if owner is None or owners[layer.name] == owner]
        for bucket in _buckets(some, lambda layer: layer.factors * 4, limit):
            flat = torch.cat([_packed(new.get(layer.name), layer, symmetric) for layer in bucket])
            if owner is None:
                work = collectives.all_reduce(flat, "factors")
            else:
                work = collectives.reduce(flat, owner, "factors")
            if owner is None or owner == collectives.rank:
                due.append((work, flat, bucket))
            else:
                due.append((work, flat, []))
    means: Factors = {}
    for work, flat, bucket in due:
        work.wait()
        flat /= collectives.ranks
        rest = flat
        for layer in bucket:
            a, rest = _unpacked(rest, layer.a, symmetric)
            g, rest = _unpacked(rest, layer.g, symmetric)
            if a.trace() > 0 or g.trace() > 0:
                means[layer.name] = (a, g)
    return means


def share_preconditioned(
    made: dict[str, Tensor],
    layers: Sequence[Layer],
    owners: Mapping[str, int],
    grid: Grid,
    *,
    dtype: torch.dtype,
    limit: int,
    like: Tensor,
) -> Iterator[tuple[Layer, Tensor]]:
    """Each layer's preconditioned gradient (g, a), for every rank, as they come.

    Parameters
    ----------
    made : dict of Tensor
        Those of this rank's column; rounded to ``dtype`` as others get them.
    like : Tensor
        Of the device and dtype that is wanted back.
    """
    row = grid.row
    if row is None:
        for layer in layers:
            yield layer, made[layer.name]
        return
    due: list[tuple[Any, Tensor, list[Layer]]] = []
    for source in range(grid.columns):
        some = [layer for layer in layers if grid.column_of(owners[layer.name]) == source]
        for bucket in _buckets(some, lambda layer: layer.weights * dtype.itemsize, limit):
            if source == row.rank:
                flat = torch.cat([made[layer.name].reshape(-1) for layer in bucket]).to(dtype)
            else:
                flat = like.new_empty(sum(layer.weights for layer in bucket), dtype=dtype)
            due.append((row.broadcast(flat, source, "preconditioned"), flat, bucket))
    for work, flat, bucket in due:
        work.wait()
        for layer, part in zip(
            bucket, torch.split(flat.to(like.dtype), [layer.weights for layer in bucket]), strict=True
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


def _packed(factors: tuple[Tensor, Tensor] | None, layer: Layer, symmetric: bool) -> Tensor:
    if factors is None:
        weight = layer.module.weight
        kind = weight.dtype if weight.dtype == torch.float64 else torch.float32
        factors = (
            torch.zeros(layer.a, layer.a, dtype=kind, device=weight.device),
            torch.zeros(layer.g, layer.g, dtype=kind, device=weight.device),
        )
    return torch.cat([triangle(f) if symmetric else f.reshape(-1) for f in factors])


def _unpacked(flat: Tensor, side: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    numbers = side * (side + 1) // 2 if symmetric else side * side
    part = flat[:numbers]
    return from_triangle(part, side) if symmetric else part.view(side, side).clone(), flat[numbers:]
