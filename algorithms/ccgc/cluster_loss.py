"""The cluster-guided contrastive loss over rows that several ranks hold (section 3 of the page)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ...data.graph_set import Ints
from .confident import Pairs
from .ranks import Ranks, Rows, shared_total
from .settings import CCGCSettings


@dataclass(frozen=True)
class LossParts:
    """The loss of an epoch and its parts, scalars; the same on all ranks."""

    total: Tensor
    positive: Tensor
    negative: Tensor


def cluster_loss(
    views: tuple[Tensor, Tensor],
    at: Ints,
    pairs: Pairs,
    clusters: int,
    settings: CCGCSettings,
    rows: Rows,
    ranks: Ranks,
) -> LossParts:
    """Return the loss; its gradient is that of this rank's rows.

    Parameters
    ----------
    views : (Tensor, Tensor), shape [n, d]
        Unit rows of this rank's confident nodes.
    at : int64 array, shape [N]
        Index of each node of this rank in ``views``.
    pairs : Pairs
    clusters : int
        K.
    settings : CCGCSettings
    rows : Rows
    ranks : Ranks
    """
    positive_here = _positive(views, at, pairs, rows, ranks)
    sums = [_member_sums(view, at, [both[side] for both in pairs.members], rows) for side, view in enumerate(views)]
    shared = shared_total(torch.cat([positive_here[None], *(each.reshape(-1) for each in sums)]), ranks)
    scale = max(len(pairs.first), 1) if settings.pos_reduction == "mean" else clusters
    positive = shared[0] / scale
    negative = positive.new_zeros(())
    if settings.negatives != "none":
        one, two = (functional.normalize(part.view(len(pairs.members), -1)) for part in shared[1:].chunk(2))
        negative = centers_loss(one, two)
    return LossParts(positive + settings.alpha * negative, positive, negative)


def centers_loss(first: Tensor, second: Tensor) -> Tensor:
    """Return the mean of the squared similarities of different clusters; the zero diagonal counts in the mean."""
    similarity = first @ second.T
    return (similarity - torch.diag(similarity.diagonal())).pow(2).mean()


def _member_sums(view: Tensor, at: Ints, members: Sequence[Ints], rows: Rows) -> Tensor:
    """Return the sum of this rank's members of each cluster, (K', d)."""
    own = [nodes[rows.owner[nodes] == rows.rank] for nodes in members]
    index = torch.from_numpy(at[np.concatenate(own)]).to(view.device)
    cluster = torch.from_numpy(np.repeat(np.arange(len(own)), [len(nodes) for nodes in own])).to(view.device)
    return view.new_zeros((len(own), view.shape[1])).index_add(0, cluster, view[index])


def _positive(views: tuple[Tensor, Tensor], at: Ints, pairs: Pairs, rows: Rows, ranks: Ranks) -> Tensor:
    """Return the sum of 2 − 2⟨e1, e2⟩ over the pairs whose first node is here.

    Of a pair on two ranks both exchange their row, and each has the gradient of its own.
    """
    first, second = views
    owners = rows.owner[pairs.first], rows.owner[pairs.second]
    here = owners[0] == rows.rank, owners[1] == rows.rank
    both = here[0] & here[1]

    def local(view: Tensor, nodes: Ints) -> Tensor:
        return view[torch.from_numpy(at[nodes]).to(view.device)]

    loss = _distance(local(first, pairs.first[both]), local(second, pairs.second[both]))
    if rows.size == 1:
        return loss
    others = [rank for rank in range(rows.size) if rank != rows.rank]
    #: By other rank: pairs of a first node here and a second there, and the reverse.
    out = {rank: np.flatnonzero(here[0] & (owners[1] == rank)) for rank in others}
    into = {rank: np.flatnonzero(here[1] & (owners[0] == rank)) for rank in others}
    sent = [
        first[:0]
        if rank == rows.rank
        else torch.cat([local(first, pairs.first[out[rank]]), local(second, pairs.second[into[rank]])])
        for rank in range(rows.size)
    ]
    counts = [0 if rank == rows.rank else len(out[rank]) + len(into[rank]) for rank in range(rows.size)]
    received = ranks.exchanged(sent, counts)
    for rank in others:
        # The other rank's first nodes of the pairs `into`, then its second nodes of the pairs `out`.
        their_first, their_second = torch.split(received[rank], [len(into[rank]), len(out[rank])])
        loss = loss + _distance(local(first, pairs.first[out[rank]]), their_second)
        counted_there = _distance(their_first, local(second, pairs.second[into[rank]]))
        loss = loss + counted_there - counted_there.detach()
    return loss


def _distance(one: Tensor, other: Tensor) -> Tensor:
    return (2 - 2 * (one * other).sum(dim=1)).sum()
