"""K-means: blobs, empty clusters, the published choice of starts, and rows on several ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from farshore.algorithms.ccgc import kmeans as module
from farshore.algorithms.ccgc.kmeans import kmeans, nearest
from farshore.algorithms.ccgc.metrics import clustering_metrics
from farshore.algorithms.ccgc.ranks import Alone, Rows
from farshore.core.seeds import Seed

CENTERS = np.array([[0, 0, 0], [20, 0, 0], [0, 20, 0]], np.float32)


def blobs(per_cluster: int = 30, seed: int = 0) -> tuple[torch.Tensor, np.ndarray[Any, Any]]:
    labels = np.repeat(np.arange(3), per_cluster)
    noise = np.random.default_rng(seed).standard_normal((len(labels), 3))
    return torch.from_numpy((CENTERS[labels] + noise).astype(np.float32)), labels


@pytest.mark.parametrize("library", ["reference", "sklearn"])
@pytest.mark.parametrize("seed", range(20))
def test_separate_blobs_are_recovered(seed: int, library: str) -> None:
    x, labels = blobs(seed=seed)
    runs = 5 if library == "reference" else 1
    found = kmeans(x, 3, Rows.blocks(90, 0, 1), Alone(), Seed(seed), runs=runs, library=library)
    assert clustering_metrics(labels, found.labels)["acc"] == 100
    means = torch.stack([x[torch.from_numpy(labels == k)].mean(dim=0) for k in range(3)])
    expected = ((x - means[torch.from_numpy(labels)]) ** 2).sum(dim=1)
    assert found.distances == pytest.approx(expected, rel=0.05, abs=0.05)
    assert found.inertia == pytest.approx(float(expected.sum()), rel=1e-3)
    assert found.ratio == pytest.approx(float(expected.sum() / ((x - x.mean(dim=0)) ** 2).sum()), rel=1e-3)


def test_an_empty_cluster_gets_the_farthest_node(monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = blobs()
    far = torch.tensor([[0.0, 0, 0], [1.0, 1, 0], [900.0, 900, 900]])
    monkeypatch.setattr(module, "_initial_centers", lambda *_: far.clone())
    found = kmeans(x, 3, Rows.blocks(90, 0, 1), Alone(), Seed(0))
    assert torch.isfinite(found.distances).all()
    assert set(found.labels.tolist()) == {0, 1, 2}
    assert clustering_metrics(labels, found.labels)["acc"] == 100


def test_initial_centers_have_the_least_sum_of_all_distances() -> None:
    x, _ = blobs()
    rows, seed = Rows.blocks(90, 0, 1), Seed(3)
    random = seed.numpy()
    drawn = [random.choice(90, 3, replace=False) for _ in range(module.INITIALIZATIONS)]
    sums = [float(((x[:, None] - x[torch.from_numpy(ids)][None]) ** 2).sum()) for ids in drawn]
    chosen = module._initial_centers(x, 3, rows, Alone(), seed, x.sum(dim=0))
    assert torch.equal(chosen, x[torch.from_numpy(drawn[int(np.argmin(sums))])])


def test_distances_are_squared_and_never_negative() -> None:
    x = torch.full((5, 4), 1e3)
    labels, distances = nearest(x, torch.stack([x[0], x[0] + 1]))
    assert labels.tolist() == [0] * 5
    assert distances.min() >= 0


@pytest.mark.parametrize("library", ["reference", "sklearn"])
@pytest.mark.parametrize("size", [2, 3])
def test_the_clusters_of_ranks_are_those_of_one_machine(
    on_ranks: Callable[..., list[Any]], library: str, size: int
) -> None:
    x, _ = blobs(per_cluster=21, seed=4)
    alone = kmeans(x, 3, Rows.blocks(63, 0, 1), Alone(), Seed(1), library=library)
    owner = np.random.default_rng(0).integers(0, size, 63)

    def rank(ranks: Any) -> Any:
        rows = Rows(owner, ranks.rank, ranks.size)
        found = kmeans(x[torch.from_numpy(rows.own)], 3, rows, ranks, Seed(1), library=library)
        return found, ranks.sent, rows.counts

    for found, sent, counts in on_ranks(size, rank):
        assert torch.equal(found.labels, alone.labels)
        assert found.distances == pytest.approx(alone.distances, rel=1e-3, abs=1e-3)
        assert found.inertia == pytest.approx(alone.inertia, rel=1e-5)
        if library == "reference":
            start = 4 * (1 + 3) + 4 * module.INITIALIZATIONS * 3 * 3
            assert sent["all_reduce"] == start + found.iterations * 4 * 3 * (3 + 1)
            assert sent["all_gather"] == int(counts.max()) * 2 * 4, "a label and a distance per node"


def test_an_empty_cluster_is_repaired_on_ranks(
    on_ranks: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, labels = blobs()
    far = torch.tensor([[0.0, 0, 0], [1.0, 1, 0], [900.0, 900, 900]])
    monkeypatch.setattr(module, "_initial_centers", lambda *_: far.clone())

    def rank(ranks: Any) -> Any:
        rows = Rows.blocks(90, ranks.rank, ranks.size)
        return kmeans(x[torch.from_numpy(rows.own)], 3, rows, ranks, Seed(0)).labels

    one, other = on_ranks(2, rank)
    assert torch.equal(one, other)
    assert clustering_metrics(labels, one)["acc"] == 100


def test_the_best_of_several_runs_has_the_least_inertia() -> None:
    x, _ = blobs(seed=7)
    rows = Rows.blocks(90, 0, 1)
    single = [kmeans(x, 5, rows, Alone(), Seed(2).child(run).child("x")) for run in range(2)]
    assert all(one.inertia > 0 for one in single)
    many = kmeans(x, 5, rows, Alone(), Seed(2), runs=8)
    few = kmeans(x, 5, rows, Alone(), Seed(2), runs=1)
    assert many.inertia <= few.inertia
    assert many.iterations > few.iterations
