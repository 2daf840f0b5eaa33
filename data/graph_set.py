"""A graph with node attributes, and the checks that every reader's graph passes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..core.errors import DataError

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Ints: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """An undirected graph without weights, whose nodes have attributes.

    Attributes
    ----------
    name : str
    edges : int64 array, shape [2, E]
        Pairs u < v, each once, sorted.
    features : scipy.sparse.csr_array or float32 array, shape [N, D]
    labels : int64 array, shape [N], optional
        True classes, 0 … C - 1.
    loops : int64 array
        Nodes with an edge to themselves; in no other attribute than :meth:`degrees`.
    unlabeled : int64 array
        Nodes whose label is a placeholder because the data set has none for them.
    note : str
        Where the graph comes from.

    Raises
    ------
    DataError
        The parts do not fit each other.
    """

    name: str
    edges: Ints
    features: Floats | csr_array
    labels: Ints | None = None
    loops: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    unlabeled: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    note: str = ""

    def __post_init__(self) -> None:
        if self.nodes < 2 or self.width < 1:
            raise DataError(f"the graph '{self.name}' has {self.nodes} nodes and {self.width} attributes")
        if not np.isfinite(values_of(self.features)).all():
            raise DataError(f"the attributes of '{self.name}' are not all finite")
        if self.edges.size and (self.edges.min() < 0 or self.edges.max() >= self.nodes):
            raise DataError(f"an edge of '{self.name}' has a node that is not one of the {self.nodes}")
        if self.labels is not None and self.labels.shape != (self.nodes,):
            raise DataError(f"'{self.name}' has {len(self.labels)} labels for {self.nodes} nodes")

    @property
    def nodes(self) -> int:
        """Number of nodes, N."""
        return int(self.features.shape[0])

    @property
    def width(self) -> int:
        """Number of attributes, D."""
        return int(self.features.shape[1])

    @property
    def classes(self) -> int:
        """Number of true classes; 0 without labels."""
        return 0 if self.labels is None else int(self.labels.max()) + 1

    def degrees(self) -> Ints:
        """Return the number of edges of each node, (N,); an edge to itself counts once."""
        ends = np.concatenate([self.edges.ravel(), self.loops])
        return np.bincount(ends, minlength=self.nodes).astype(np.int64)

    def labeled_only(self) -> Graph:
        """Return the graph without the nodes that have no label."""
        if not len(self.unlabeled):
            return self
        kept = np.ones(self.nodes, bool)
        kept[self.unlabeled] = False
        number = np.cumsum(kept) - 1
        edges = number[self.edges[:, kept[self.edges].all(axis=0)]]
        labels = None if self.labels is None else self.labels[kept]
        note = f"{self.note}; without {len(self.unlabeled)} nodes that have no label"
        return Graph(self.name, edges, self.features[kept], labels, number[self.loops[kept[self.loops]]], note=note)


def values_of(features: Floats | csr_array) -> NDArray[Any]:
    """Return the attributes that are stored: all of a dense array, the nonzero ones of a sparse one."""
    return features if isinstance(features, np.ndarray) else np.asarray(features.data)


def undirected(pairs: Ints) -> tuple[Ints, Ints]:
    """Return the edges among node pairs (2, M), each once with u < v, and the nodes with an edge to themselves."""
    low, high = np.minimum(*pairs), np.maximum(*pairs)
    loops = np.unique(low[low == high])
    low, high = low[low != high], high[low != high]
    if not len(low):
        return np.zeros((2, 0), np.int64), loops
    return np.unique(np.stack([low, high]), axis=1).astype(np.int64), loops
