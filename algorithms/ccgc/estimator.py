"""CCGC as an estimator in the style of scikit-learn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch

from ...core.devices import DeviceName
from ...core.seeds import Seed
from ...data.graph_set import Graph, Ints
from .baselines import baselines
from .problem import shard
from .result import ClusteringResult
from .settings import CCGCSettings
from .training import Training


class CCGC:
    """Clusters the nodes of a graph with attributes.

    Parameters
    ----------
    clusters : int
        Number of clusters; 0: the number of true classes, if the graph has labels.
    random_state : int
        Results are the same for the same seed, number of threads and build of torch.
    device : {"auto", "cpu", "cuda", "mps"}
    settings
        See :class:`CCGCSettings`: ``CCGC(7, lr=1e-4, tau=0.3)``.

    Attributes
    ----------
    result_ : ClusteringResult
    labels_ : int64 array, shape [N]

    Examples
    --------
    >>> labels = CCGC(clusters=7, lr=1e-4).fit_predict(graph)
    """

    def __init__(
        self, clusters: int = 0, *, random_state: int = 0, device: DeviceName = "cpu", **settings: Any
    ) -> None:
        self.settings = CCGCSettings(clusters=clusters, **settings)
        self.random_state, self.device = random_state, device
        self.result_: ClusteringResult

    def fit(self, graph: Graph, on_epoch: Callable[[int, Mapping[str, float]], None] | None = None) -> Self:
        """Train on a graph.

        Parameters
        ----------
        graph : Graph
            Its labels, if it has any, are used for metrics (and by ``select="best_oracle"``) only.
        on_epoch : callable, optional
            Called with each epoch and its losses.
        """
        training = Training(self.settings, shard(graph, self.settings), Seed(self.random_state), device=self.device)
        training.start()
        while training.epoch < self.settings.epochs:
            losses = training.step()
            if on_epoch is not None:
                on_epoch(training.epoch - 1, losses)
            if training.evaluates:
                training.evaluate(losses)
        self.result_ = result_of(training)
        return self

    def fit_predict(self, graph: Graph) -> Ints:
        """Train on a graph and return the cluster of each node."""
        return self.fit(graph).labels_

    @property
    def labels_(self) -> Ints:
        """The cluster of each node."""
        return self.result_.labels


def result_of(training: Training) -> ClusteringResult:
    """Return the result of a rank that is alone."""
    labels = training.result_labels()
    with torch.no_grad():
        embedding = training.selected_embedding().cpu().numpy()
    chosen = [entry for entry in training.history if entry.get("selected")][-1]
    metrics = training.metrics(labels)
    return ClusteringResult(labels, embedding, chosen["epoch"], metrics, training.history, baselines(training))
