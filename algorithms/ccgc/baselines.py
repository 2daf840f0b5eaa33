"""What K-means finds without training: the rows that stand beside CCGC in every result."""

from __future__ import annotations

from collections.abc import Mapping

from .kmeans import kmeans
from .training import Training

#: Runs of K-means per baseline; the one of the least inertia counts.
RUNS = 10


def baselines(training: Training) -> dict[str, Mapping[str, float]]:
    """Return the metrics of K-means on raw attributes, smoothed attributes and log(1 + degree); a collective.

    Empty without true labels.
    """
    problem = training.problem
    if problem.labels is None:
        return {}
    inputs = {"kmeans_x": problem.raw, "kmeans_smoothed": problem.smoothed, "kmeans_degree": problem.log_degree}
    found: dict[str, Mapping[str, float]] = {}
    for name, x in inputs.items():
        seed = training.seed.child(name)
        clusters = kmeans(x, problem.clusters, problem.rows, training.ranks, seed, runs=RUNS)
        found[name] = training.metrics(clusters.labels.numpy())
    return found
