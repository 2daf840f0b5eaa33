"""Agreement of clusters with true classes: ACC, NMI, ARI and macro F1, in per cent (section 6 of the page)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ...data.graph_set import Ints

#: Names of the metrics; ``acc`` is the one by which runs are compared.
METRICS = ("acc", "nmi", "ari", "f1")


def contingency(true: ArrayLike, predicted: ArrayLike, clusters: int = 0, classes: int = 0) -> Ints:
    """Count the nodes of each cluster and class, (K, C) int64."""
    y, p = np.asarray(true, np.int64), np.asarray(predicted, np.int64)
    shape = max(clusters, int(p.max(initial=-1)) + 1), max(classes, int(y.max(initial=-1)) + 1)
    table = np.zeros(shape, np.int64)
    np.add.at(table, (p, y), 1)
    return table


def clustering_metrics(true: ArrayLike, predicted: ArrayLike) -> dict[str, float]:
    """Compare clusters with true classes.

    Parameters
    ----------
    true, predicted : array of int, shape [N]

    Returns
    -------
    dict
        ``acc``, ``nmi``, ``ari`` and ``f1``, in per cent; see :func:`metrics_of`.
    """
    return metrics_of(contingency(true, predicted))


def metrics_of(table: Ints) -> dict[str, float]:
    """Compute the metrics from a contingency table (K, C), which is all that they depend on.

    Clusters are matched with classes such that the most nodes agree (Hungarian algorithm); nodes of clusters or classes
    that remain unmatched count as errors.
    """
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics import adjusted_rand_score, f1_score, normalized_mutual_info_score

    clusters, classes = table.shape
    rows, columns = linear_sum_assignment(table, maximize=True)
    match = np.arange(classes, classes + clusters)  # clusters without a class get a name of their own
    match[rows] = columns
    cluster, label = (np.repeat(ids.ravel(), table.ravel()) for ids in np.indices(table.shape))
    named = match[cluster]
    return {
        "acc": 100 * float(table[rows, columns].sum() / table.sum()),
        "nmi": 100 * float(normalized_mutual_info_score(label, cluster)),
        "ari": 100 * float(adjusted_rand_score(label, cluster)),
        "f1": 100 * float(f1_score(label, named, labels=np.unique(label), average="macro", zero_division=0)),
    }


def agreement(one: ArrayLike, other: ArrayLike) -> float:
    """Return the adjusted Rand index of two clusterings."""
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(np.asarray(one), np.asarray(other)))
