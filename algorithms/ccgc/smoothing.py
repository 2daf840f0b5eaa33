"""The low-pass filter: attributes averaged over neighborhoods by the normalized adjacency (section 2 of the page)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array

if TYPE_CHECKING:
    from ...data.graph_set import Floats, Graph, Ints

#: Columns that are smoothed at once, so that sparse attributes are never all dense beside the result.
_COLUMNS = 256


def normalized_adjacency(edges: Ints, nodes: int, degrees: NDArray[Any] | None = None) -> csr_array:
    """Return P = D^-1/2 (A + I) D^-1/2, where D are the row sums of A + I.

    Parameters
    ----------
    edges : int64 array, shape [2, E]
        Each edge once; no edge of a node to itself.
    nodes : int
    degrees : array, shape [N], optional
        Numbers of neighbors; by default those in ``edges``.
    """
    count = np.bincount(edges.ravel(), minlength=nodes) if degrees is None else degrees
    scale = 1.0 / np.sqrt(np.asarray(count, np.float64) + 1.0)
    own = np.arange(nodes)
    rows = np.concatenate([edges[0], edges[1], own])
    columns = np.concatenate([edges[1], edges[0], own])
    values = (scale[rows] * scale[columns]).astype(np.float32)
    filter_ = csr_array(coo_array((values, (rows, columns)), shape=(nodes, nodes)))
    filter_.sort_indices()
    return filter_


def smooth(graph: Graph, hops: int, rows: Ints | None = None) -> Floats:
    """Return rows of P^t X as a dense array.

    Parameters
    ----------
    graph : Graph
    hops : int
        t; with 0 these are the attributes themselves.
    rows : int64 array, optional
        Nodes whose rows are wanted; default: all.

    Returns
    -------
    float32 array, shape [n, D]
    """
    wanted = np.arange(graph.nodes) if rows is None else rows
    filter_ = normalized_adjacency(graph.edges, graph.nodes)
    smoothed = np.empty((len(wanted), graph.width), np.float32)
    for start in range(0, graph.width, _COLUMNS):
        block = dense(graph.features[:, start : start + _COLUMNS])
        for _ in range(hops):
            block = filter_ @ block
        smoothed[:, start : start + _COLUMNS] = block[wanted]
    return smoothed


def dense(features: Any) -> Floats:
    """Return attributes as a dense float32 array."""
    return np.asarray(features if isinstance(features, np.ndarray) else features.toarray(), np.float32)
