"""Scores of a clustering that need no labels, and the consensus of several (section 5 of the page)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...core.message import Array
from ...core.seeds import Seed
from ...data.graph_set import Ints
from .kmeans import Clustering, kmeans
from .metrics import agreement
from .problem import Problem
from .ranks import Ranks, Rows
from .settings import Score

SCORES: tuple[Score, ...] = ("inertia_ratio", "silhouette", "stability", "modularity", "conductance", "agreement")
#: Those of which a lower score is better.
LOWER_IS_BETTER = frozenset({"inertia_ratio", "conductance"})
#: Runs of K-means on the memberships of which ``consensus`` takes the best.
CONSENSUS_RUNS = 10
#: Random parts of the nodes that are clustered again for ``stability``, and their share.
PARTS, SHARE = 4, 0.8
#: Most nodes of which the silhouette is computed; of more, a sample.
_SILHOUETTE_NODES = 5_000


@dataclass(frozen=True)
class Evaluated:
    """A clustering of an epoch and what it was made from.

    Attributes
    ----------
    first, second, fused : Tensor, shape [n, d]
        Both views and their mean, this rank's rows.
    clustering : Clustering
    """

    first: Tensor
    second: Tensor
    fused: Tensor
    clustering: Clustering


def score(rule: Score, found: Evaluated, problem: Problem, ranks: Ranks, seed: Seed) -> float:
    """Return the score of a clustering by a rule; a collective."""
    labels = found.clustering.labels
    match rule:
        case "inertia_ratio":
            return found.clustering.ratio
        case "silhouette":
            return _silhouette(found.fused, labels, problem.rows, ranks, seed)
        case "stability":
            return _stability(found.fused, labels, problem, ranks, seed)
        case "modularity":
            return graph_scores(labels, problem, ranks)["modularity"]
        case "conductance":
            return graph_scores(labels, problem, ranks)["conductance"]
        case "agreement":
            one, two = (
                kmeans(view, problem.clusters, problem.rows, ranks, seed) for view in (found.first, found.second)
            )
            return agreement(one.labels.cpu(), two.labels.cpu())


def is_better(rule: Score, value: float, best: float | None) -> bool:
    """Whether a score is better than the best so far, or as good; NaN never is."""
    if best is None or not np.isfinite(best):
        return True
    return value <= best if rule in LOWER_IS_BETTER else value >= best


def consensus(clusterings: Sequence[Array], problem: Problem, ranks: Ranks, seed: Seed) -> Ints:
    """Return what the second half of the clusterings have in common (N,); a collective.

    A node is described by its cluster in each of them, one-hot, and these descriptions are clustered: numbers of
    clusters need not agree, and no N x N matrix is formed.

    Parameters
    ----------
    clusterings : sequence of int array, shape [N]
        Labels of all nodes, in the order of the epochs.
    """
    later = np.stack(clusterings[len(clusterings) // 2 :])[:, problem.rows.own]
    memberships = np.eye(problem.clusters, dtype=np.float32)[later]  # (clusterings, n, K)
    x = torch.from_numpy(memberships.transpose(1, 0, 2).reshape(later.shape[1], -1))
    found = kmeans(x, problem.clusters, problem.rows, ranks, seed, runs=CONSENSUS_RUNS)
    return np.asarray(found.labels)


def graph_scores(labels: Tensor, problem: Problem, ranks: Ranks) -> Mapping[str, float]:
    """Return modularity, and the mean conductance of the clusters.

    The ranks add the K x K numbers of edges between clusters.
    """
    clusters = problem.clusters
    ends = labels.cpu()[torch.from_numpy(problem.edges)]
    counts = torch.bincount(ends[0] * clusters + ends[1], minlength=clusters**2).double()
    between = ranks.total(counts).view(clusters, clusters)
    between = between + between.T  # ends of edges, from a cluster (row) to a cluster (column)
    volumes, all_ends = between.sum(dim=1), between.sum().clamp(min=1)
    inside = between.diagonal()
    modularity = (inside / all_ends - (volumes / all_ends) ** 2).sum()
    smaller = torch.minimum(volumes, all_ends - volumes)
    conductance = torch.where(smaller > 0, (volumes - inside) / smaller.clamp(min=1), torch.ones_like(volumes)).mean()
    return {"modularity": float(modularity), "conductance": float(conductance)}


def _silhouette(x: Tensor, labels: Tensor, rows: Rows, ranks: Ranks, seed: Seed) -> float:
    """Return the mean silhouette, computed on rank 0 from the rows of all."""
    gathered, result = rows.on_first(x, ranks), torch.zeros(1)
    if gathered is not None:
        from sklearn.metrics import silhouette_score

        sample = min(rows.nodes, _SILHOUETTE_NODES)
        chosen = np.sort(seed.numpy().choice(rows.nodes, sample, replace=False))
        names = labels.cpu().numpy()[chosen]
        if 1 < len(np.unique(names)) < sample:
            result[0] = float(silhouette_score(gathered.cpu().numpy()[chosen], names))
        else:
            result[0] = -1.0
    return float(ranks.broadcast(result)[0])


def _stability(x: Tensor, labels: Tensor, problem: Problem, ranks: Ranks, seed: Seed) -> float:
    """Return how well clusterings of random parts of the nodes agree with that of all nodes, the mean Rand index."""
    rows, names, found = problem.rows, labels.cpu().numpy(), []
    for part in range(PARTS):
        size = max(problem.clusters, int(SHARE * rows.nodes))
        kept = np.sort(seed.child(part).numpy().choice(rows.nodes, size, replace=False))
        own = torch.from_numpy(rows.place[kept[rows.owner[kept] == rows.rank]]).to(x.device)
        again = kmeans(x[own], problem.clusters, rows.subset(kept), ranks, seed.child(part))
        found.append(agreement(again.labels.cpu(), names[kept]))
    return float(np.mean(found))
