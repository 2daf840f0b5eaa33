"""K-means as in the published code, over rows that several ranks hold, and scikit-learn's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...core.seeds import Seed
from .ranks import Ranks, Rows

#: Random initial centers, of which the best are used; stopping rule; the published values.
INITIALIZATIONS, TOLERANCE, MOST_ITERATIONS = 20, 1e-4, 501
#: Runs of scikit-learn's K-means.
SKLEARN_RUNS = 10


@dataclass(frozen=True)
class Clustering:
    """Clusters of all nodes; the same on all ranks.

    Attributes
    ----------
    labels : int64 tensor, shape [N]
    distances : float32 tensor, shape [N]
        Squared distance of each node to its center.
    inertia : float
        Sum of the distances.
    ratio : float
        Inertia as a share of the sum of squares around the mean.
    iterations : int
        Of Lloyd's algorithm, all runs.
    """

    labels: Tensor
    distances: Tensor
    inertia: float
    ratio: float
    iterations: int


def kmeans(
    x: Tensor, clusters: int, rows: Rows, ranks: Ranks, seed: Seed, *, runs: int = 1, library: str = "reference"
) -> Clustering:
    """Cluster the rows of all ranks.

    Parameters
    ----------
    x : float32 tensor, shape [n, d]
        Rows of this rank.
    clusters : int
    rows : Rows
    seed : Seed
    runs : int
        Of the reference; the one of the least inertia counts.
    library : {"reference", "sklearn"}
    """
    if library == "sklearn":
        return _sklearn(x, clusters, rows, ranks, seed)
    squares, sums = _moments(x, ranks)
    found = [_reference(x, clusters, rows, ranks, seed.child(run), sums, squares) for run in range(runs)]
    best = min(found, key=lambda one: one.inertia)
    return Clustering(best.labels, best.distances, best.inertia, best.ratio, sum(one.iterations for one in found))


def _moments(x: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """Return the sum of squares and the sum of the rows of all ranks."""
    total = ranks.total(torch.cat([(x * x).sum()[None], x.sum(dim=0)]))
    return total[0], total[1:]


def _reference(
    x: Tensor, clusters: int, rows: Rows, ranks: Ranks, seed: Seed, sums: Tensor, squares: Tensor
) -> Clustering:
    centers = _initial_centers(x, clusters, rows, ranks, seed, sums)
    exact, iterations = _exact(x), 0
    while True:
        iterations += 1
        labels, distances = nearest(exact, centers)
        means, counts = _means(x, labels, clusters, ranks)
        if (counts == 0).any():
            means = _reseeded(x, means, counts, distances, rows, ranks)
        shift = (means - centers).norm(dim=1).sum()
        centers = means
        if float(shift) ** 2 < TOLERANCE or iterations >= MOST_ITERATIONS:
            break
    # As published: the clusters and distances before the last change of the centers.
    both = rows.collected(torch.stack([labels.to(x.dtype), distances], dim=1), ranks)
    inertia = float(both[:, 1].double().sum())
    spread = float(squares.double() - (sums.double() ** 2).sum() / rows.nodes)
    return Clustering(both[:, 0].long(), both[:, 1].contiguous(), inertia, inertia / max(spread, 1e-30), iterations)


def _initial_centers(x: Tensor, clusters: int, rows: Rows, ranks: Ranks, seed: Seed, sums: Tensor) -> Tensor:
    """Return the best of some random sets of nodes: the one of the least sum of *all* N K squared distances."""
    random = seed.numpy()
    drawn = np.stack([random.choice(rows.nodes, clusters, replace=False) for _ in range(INITIALIZATIONS)])
    ids, mine = drawn.reshape(-1), rows.owner[drawn.reshape(-1)] == rows.rank
    candidates = x.new_zeros((len(ids), x.shape[1]))
    candidates[torch.from_numpy(mine)] = x[torch.from_numpy(rows.place[ids[mine]]).to(x.device)]
    centers = ranks.total(candidates).view(INITIALIZATIONS, clusters, -1)
    # sum_ik |x_i - c_k|^2 = K sum |x|^2 + N sum |c|^2 - 2 <sum x, sum c>; the first term is the same for all.
    sizes = rows.nodes * (centers * centers).sum(dim=(1, 2)) - 2 * centers.sum(dim=1) @ sums
    return centers[int(sizes.argmin())]


def nearest(x: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Return each row's nearest center (int64), and the squared distance to it (float32)."""
    x, centers = _exact(x), _exact(centers)
    squared = (x * x).sum(dim=1)[:, None] + (centers * centers).sum(dim=1)[None] - 2 * x @ centers.T
    distances, labels = squared.clamp_(min=0).min(dim=1)
    return labels, distances.float()


def _exact(x: Tensor) -> Tensor:
    """Return a tensor in float64, where the device has it.

    Small distances are differences of large numbers. In float32 their error would reorder nodes, so that confident sets
    would depend on the number of ranks.
    """
    return x if x.device.type == "mps" else x.double()


def _means(x: Tensor, labels: Tensor, clusters: int, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """Return the means (K, d) and sizes (K,) of clusters; the ranks add K (d + 1) numbers."""
    sums = x.new_zeros((clusters, x.shape[1] + 1))
    sums[:, :-1].index_add_(0, labels, x)
    sums[:, -1] = torch.bincount(labels, minlength=clusters)
    total = ranks.total(sums)
    return total[:, :-1] / total[:, -1:].clamp(min=1), total[:, -1]


def _reseeded(x: Tensor, means: Tensor, counts: Tensor, distances: Tensor, rows: Rows, ranks: Ranks) -> Tensor:
    """Move the centers of empty clusters to the nodes that are farthest from their centers."""
    empty = torch.nonzero(counts == 0).flatten()
    farthest = rows.collected(distances, ranks).topk(len(empty)).indices.cpu().numpy()
    mine = rows.owner[farthest] == rows.rank
    moved = x.new_zeros((len(empty), x.shape[1]))
    moved[torch.from_numpy(mine)] = x[torch.from_numpy(rows.place[farthest[mine]]).to(x.device)]
    means[empty] = ranks.total(moved)
    return means


def _sklearn(x: Tensor, clusters: int, rows: Rows, ranks: Ranks, seed: Seed) -> Clustering:
    """Cluster on rank 0: k-means++ with several runs, distances to the final centers."""
    gathered = rows.on_first(x, ranks)
    both, spread, iterations = x.new_zeros((rows.nodes, 2)), x.new_zeros(1), 0
    if gathered is not None:
        from sklearn.cluster import KMeans

        points = gathered.cpu().numpy()
        model = KMeans(clusters, n_init=SKLEARN_RUNS, random_state=seed.value % (1 << 32)).fit(points)
        iterations = int(model.n_iter_)
        centers = torch.from_numpy(model.cluster_centers_.astype(np.float32)).to(x.device)
        labels = torch.from_numpy(model.labels_.astype(np.int64)).to(x.device)
        both = torch.stack([labels.to(x.dtype), ((gathered - centers[labels]) ** 2).sum(dim=1)], dim=1)
        spread = ((gathered - gathered.mean(dim=0)) ** 2).sum()[None]
    shared = ranks.broadcast(torch.cat([both.reshape(-1), spread]))
    both, inertia = shared[:-1].view(-1, 2), float(shared[1:-1:2].double().sum())
    ratio = inertia / max(float(shared[-1]), 1e-30)
    return Clustering(both[:, 0].long(), both[:, 1].contiguous(), inertia, ratio, iterations)
