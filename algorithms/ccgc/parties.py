"""A graph that several parties own: each has some nodes with their attributes, labels and edges, and shares a halo."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array

from ...core.seeds import Seed
from ...data.graph_set import Floats, Graph, Ints
from .problem import Problem, number_of_clusters, projected
from .ranks import Ranks, Rows
from .settings import CCGCSettings
from .smoothing import dense

Halo: TypeAlias = Literal["exact", "drop_cross_edges"]
Partition: TypeAlias = Literal["blocks", "random", "regions"]


@dataclass(frozen=True)
class Party:
    """What one party knows.

    Attributes
    ----------
    rows : Rows
        Which party owns which node; known to all.
    features : float32 array, shape [n, D]
        Attributes of its nodes.
    edges : int64 array, shape [2, e]
        All edges with an end at one of its nodes; numbers are those of the whole graph.
    loops : int64 array
        Its nodes with an edge to themselves.
    labels : int64 array, shape [n], optional
    """

    rows: Rows
    features: Floats
    edges: Ints
    loops: Ints
    labels: Ints | None


def assign_nodes(graph: Graph, parties: int, partition: Partition, seed: Seed) -> Ints:
    """Return the party of each node (N,), with equal numbers of nodes up to one.

    ``blocks``: in the order of the nodes; ``random``: at random, the most edges between parties; ``regions``: breadth
    first from random nodes, few edges between parties.
    """
    random = seed.child("partition").numpy()
    if partition == "regions":
        order = _breadth_first(graph, random)
    else:
        order = random.permutation(graph.nodes) if partition == "random" else np.arange(graph.nodes)
    owner = np.empty(graph.nodes, np.int64)
    owner[order] = np.arange(graph.nodes) * parties // graph.nodes
    return owner


def _breadth_first(graph: Graph, random: np.random.Generator) -> Ints:
    ends = np.concatenate([graph.edges, graph.edges[::-1]], axis=1)
    ends = ends[:, np.argsort(ends[0], kind="stable")]
    starts = np.searchsorted(ends[0], np.arange(graph.nodes + 1))
    order: list[int] = []
    seen = np.zeros(graph.nodes, bool)
    for first in random.permutation(graph.nodes):
        waiting = deque([int(first)])
        while waiting:
            node = waiting.popleft()
            if not seen[node]:
                seen[node] = True
                order.append(node)
                waiting.extend(ends[1, starts[node] : starts[node + 1]].tolist())
    return np.array(order, np.int64)


def cut_out(graph: Graph, rows: Rows) -> Party:
    """Return what the party of this rank knows of a graph."""
    mine = (rows.owner[graph.edges] == rows.rank).any(axis=0)
    labels = None if graph.labels is None else graph.labels[rows.own]
    loops = graph.loops[rows.owner[graph.loops] == rows.rank]
    return Party(rows, dense(graph.features[rows.own]), graph.edges[:, mine], loops, labels)


class HaloExchange:
    """Sends this party's boundary nodes to its neighbors and receives theirs, its halo.

    Parameters
    ----------
    rows : Rows
    edges : int64 array, shape [2, e]
        Edges with an end at one of this party's nodes.
    ranks : Ranks

    Attributes
    ----------
    outgoing : list of int64 array
        By rank: this party's nodes with a neighbor there, ascending.
    halo : int64 array
        Nodes of other parties with a neighbor here, by rank and ascending.
    """

    def __init__(self, rows: Rows, edges: Ints, ranks: Ranks) -> None:
        self._rows, self._ranks = rows, ranks
        owner = rows.owner
        both = np.concatenate([edges, edges[::-1]], axis=1)
        out = both[:, (owner[both[0]] == rows.rank) & (owner[both[1]] != rows.rank)]
        self.outgoing = [np.unique(out[0, owner[out[1]] == rank]) for rank in range(rows.size)]
        self._incoming = [np.unique(out[1, owner[out[1]] == rank]) for rank in range(rows.size)]
        self.halo: Ints = np.concatenate(self._incoming).astype(np.int64)

    def values(self, x: NDArray[Any]) -> NDArray[Any]:
        """Return the rows of the halo (h, c), given this party's (n, c); sends 4 c bytes per outgoing node."""
        table = torch.from_numpy(np.ascontiguousarray(x, np.float32))
        parts = [table[torch.from_numpy(self._rows.place[nodes])] for nodes in self.outgoing]
        received = self._ranks.exchanged(parts, [len(nodes) for nodes in self._incoming])
        return np.asarray(torch.cat(received))


def smooth_party(party: Party, hops: int, halo: Halo, ranks: Ranks) -> Floats:
    """Return this party's rows of P^t X.

    ``exact``: those of the whole graph, bit for bit; degrees of boundary nodes are shared once and their attributes in
    each hop. ``drop_cross_edges``: those of the graph without edges between parties; nothing is sent.
    """
    rows = party.rows
    edges = party.edges if halo == "exact" else inner_edges(party)
    exchange = HaloExchange(rows, edges, ranks)
    own_ends = edges.ravel()[rows.owner[edges.ravel()] == rows.rank]
    degrees = np.bincount(rows.place[own_ends], minlength=len(rows.own)).astype(np.float64)
    is_shared = halo == "exact" and rows.size > 1
    around = exchange.values(degrees[:, None])[:, 0] if is_shared else np.zeros(0)
    filter_, order = _local_filter(rows, edges, exchange.halo, np.concatenate([degrees, around]))
    x = party.features
    for _ in range(hops):
        halo_rows = exchange.values(x) if is_shared else x[:0]
        x = filter_ @ np.concatenate([x, halo_rows])[order]
    return np.asarray(x, np.float32)


def inner_edges(party: Party) -> Ints:
    """Return the edges of which both ends belong to the party."""
    return party.edges[:, (party.rows.owner[party.edges] == party.rows.rank).all(axis=0)]


def _local_filter(rows: Rows, edges: Ints, halo: Ints, degrees: NDArray[np.float64]) -> tuple[csr_array, Ints]:
    """Return the rows of P of this party's nodes, with columns of nodes here and in the halo by ascending number.

    In this order the sums have the rounding of the whole graph's. The second result sorts stacked own and halo rows.
    """
    ids = np.concatenate([rows.own, halo])
    order = np.argsort(ids)
    column = np.full(rows.nodes, -1)
    column[ids[order]] = np.arange(len(ids))
    scale = 1.0 / np.sqrt(degrees[order] + 1.0)
    pairs = np.concatenate([edges, edges[::-1], np.stack([rows.own, rows.own])], axis=1)
    pairs = pairs[:, rows.owner[pairs[0]] == rows.rank]
    values = (scale[column[pairs[0]]] * scale[column[pairs[1]]]).astype(np.float32)
    shape = len(rows.own), len(ids)
    filter_ = csr_array(coo_array((values, (rows.place[pairs[0]], column[pairs[1]])), shape=shape))
    filter_.sort_indices()
    return filter_, order


def party_problem(graph: Graph, rows: Rows, settings: CCGCSettings, halo: Halo, ranks: Ranks) -> Problem:
    """Return what a party trains on; from here on it is a rank that holds rows.

    Of ``graph`` only what :func:`cut_out` returns, and the public numbers of nodes and classes, is used.
    """
    party = cut_out(graph, rows)
    smoothed = torch.from_numpy(smooth_party(party, settings.smoothing, halo, ranks))
    edges = party.edges if halo == "exact" else inner_edges(party)
    ends = np.concatenate([edges.ravel(), party.loops])
    degrees = np.bincount(rows.place[ends[rows.owner[ends] == rows.rank]], minlength=len(rows.own))
    return Problem(
        rows=rows,
        clusters=number_of_clusters(graph, settings),
        classes=graph.classes,
        raw=torch.from_numpy(party.features),
        smoothed=projected(smoothed, settings.input_pca, rows, ranks),
        log_degree=torch.from_numpy(np.log1p(degrees[:, None]).astype(np.float32)),
        edges=edges[:, rows.owner[edges[0]] == rows.rank],
        labels=party.labels,
    )
