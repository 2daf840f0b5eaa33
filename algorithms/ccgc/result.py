"""What a training returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...data.graph_set import Floats, Ints


@dataclass(frozen=True, eq=False)
class ClusteringResult:
    """The selected clustering.

    Attributes
    ----------
    labels : int64 array, shape [N]
        Clusters, 0 … K - 1.
    embedding : float32 array, shape [N, d]
        Fused embedding of the selected epoch.
    epoch : int
        The selected epoch.
    metrics : Mapping
        ``acc``, ``nmi``, ``ari``, ``f1`` of the selected clustering, in per cent; empty without true labels.
    history : sequence of Mapping
        One entry per evaluation: ``epoch``, losses, scores and metrics.
    baselines : Mapping
        Metrics of K-means on raw attributes, on smoothed ones and on the logarithm of the degree.
    """

    labels: Ints
    embedding: Floats
    epoch: int
    metrics: Mapping[str, float]
    history: Sequence[Mapping[str, Any]]
    baselines: Mapping[str, Mapping[str, float]]
