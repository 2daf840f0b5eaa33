"""What a rank trains on: its rows of the smoothed attributes, and its part of the graph for evaluations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...core.errors import ConfigError
from ...data.graph_set import Graph, Ints
from .ranks import Alone, Ranks, Rows
from .settings import CCGCSettings
from .smoothing import dense, smooth


@dataclass(frozen=True)
class Problem:
    """A rank's part.

    Attributes
    ----------
    rows : Rows
    clusters, classes : int
        K, and the number of true classes; 0 without labels.
    raw, smoothed, log_degree : float32 tensor, shape [n, D], [n, D'], [n, 1]
        Of this rank's nodes: attributes before and after smoothing, and log(1 + degree).
    edges : int64 array, shape [2, e]
        Each edge is in this list of one rank.
    labels : int64 array, shape [n], optional
    """

    rows: Rows
    clusters: int
    classes: int
    raw: Tensor
    smoothed: Tensor
    log_degree: Tensor
    edges: Ints
    labels: Ints | None


def shard(graph: Graph, settings: CCGCSettings, ranks: Ranks | None = None) -> Problem:
    """Return a rank's contiguous block of rows of a graph that all ranks have."""
    ranks = ranks or Alone()
    rows = Rows.blocks(graph.nodes, ranks.rank, ranks.size)
    smoothed = torch.from_numpy(smooth(graph, settings.smoothing, rows.own))
    return Problem(
        rows=rows,
        clusters=number_of_clusters(graph, settings),
        classes=graph.classes,
        raw=torch.from_numpy(dense(graph.features[rows.own])),
        smoothed=projected(smoothed, settings.input_pca, rows, ranks),
        log_degree=torch.from_numpy(np.log1p(graph.degrees()[rows.own, None]).astype(np.float32)),
        edges=graph.edges[:, rows.owner[graph.edges[0]] == ranks.rank],
        labels=None if graph.labels is None else graph.labels[rows.own],
    )


def number_of_clusters(graph: Graph, settings: CCGCSettings) -> int:
    """Return K.

    Raises
    ------
    ConfigError
        It is neither set nor known from labels, exceeds the number of nodes, or labels are needed and missing.
    """
    if settings.select == "best_oracle" and graph.labels is None:
        raise ConfigError(
            f"select=best_oracle needs true labels, which '{graph.name}' does not have", hint="use select=best_unsup"
        )
    clusters = settings.clusters or graph.classes
    if not clusters:
        raise ConfigError(
            f"'{graph.name}' has no labels that say how many clusters there are", hint="set clusters, e.g. clusters=7"
        )
    if not 2 <= clusters <= graph.nodes:
        raise ConfigError(
            f"clusters={clusters} is not between 2 and the {graph.nodes} nodes of '{graph.name}'", hint="set clusters"
        )
    return clusters


def projected(smoothed: Tensor, components: int, rows: Rows, ranks: Ranks) -> Tensor:
    """Return the coordinates on the leading principal axes, without centering; unchanged for 0.

    The ranks add the D x D moment matrix.
    """
    if not components:
        return smoothed
    width = smoothed.shape[1]
    if components > width:
        raise ConfigError(f"input_pca={components} exceeds the {width} attributes", hint="use fewer, or 0")
    moment = ranks.total(smoothed.T @ smoothed) if rows.size > 1 else smoothed.T @ smoothed
    _, axes = torch.linalg.eigh(moment.double())
    leading: Tensor = axes[:, -components:].flip(1).float()
    return smoothed @ leading
