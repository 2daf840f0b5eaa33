"""Scores without labels: by hand, bounds, and rows on several ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from farshore.algorithms.ccgc.kmeans import Clustering, kmeans
from farshore.algorithms.ccgc.metrics import clustering_metrics
from farshore.algorithms.ccgc.problem import shard
from farshore.algorithms.ccgc.ranks import Alone
from farshore.algorithms.ccgc.selection import (
    LOWER_IS_BETTER,
    SCORES,
    Evaluated,
    consensus,
    graph_scores,
    is_better,
    score,
)
from farshore.algorithms.ccgc.settings import CCGCSettings
from farshore.core.seeds import Seed
from farshore.data.graph_set import Graph


def test_modularity_and_conductance_have_the_values_by_hand() -> None:
    # Two triangles and one edge between them.
    edges = np.array([[0, 0, 1, 2, 3, 3, 4], [1, 2, 2, 3, 4, 5, 5]])
    graph = Graph("triangles", edges, np.ones((6, 2), np.float32), np.array([0, 0, 0, 1, 1, 1]))
    problem = shard(graph, CCGCSettings())
    found = graph_scores(torch.tensor([0, 0, 0, 1, 1, 1]), problem, Alone())
    assert found["modularity"] == pytest.approx(2 * (3 / 7 - (7 / 14) ** 2))
    assert found["conductance"] == pytest.approx(1 / 7)
    mixed = graph_scores(torch.tensor([0, 1, 0, 1, 0, 1]), problem, Alone())
    assert mixed["modularity"] < found["modularity"]
    assert mixed["conductance"] > found["conductance"]


def evaluated(graph: Graph, good: bool) -> tuple[Evaluated, Any]:
    """Views near the true classes, or far from any structure."""
    problem = shard(graph, CCGCSettings())
    assert graph.labels is not None
    random = torch.Generator().manual_seed(1)
    centers = torch.eye(3, 8)[torch.from_numpy(graph.labels)]
    first, second = (centers * good + 0.2 * torch.randn(90, 8, generator=random) for _ in range(2))
    fused = (first + second) / 2
    return Evaluated(first, second, fused, kmeans(fused, 3, problem.rows, Alone(), Seed(0), runs=5)), problem


@pytest.mark.parametrize("rule", SCORES)
def test_every_rule_prefers_clusters_that_exist(graph: Graph, rule: Any) -> None:
    (good, problem), (bad, _) = evaluated(graph, good=True), evaluated(graph, good=False)
    values = [score(rule, each, problem, Alone(), Seed(0)) for each in (good, bad)]
    assert is_better(rule, values[0], values[1])
    assert not is_better(rule, values[1], values[0])


def test_a_score_that_is_as_good_is_taken_and_nan_is_replaced() -> None:
    for rule in SCORES:
        assert is_better(rule, 0.5, None)
        assert is_better(rule, 0.5, 0.5)
        assert is_better(rule, 0.4, 0.5) == (rule in LOWER_IS_BETTER)
        assert is_better(rule, 0.5, float("nan"))
        assert not is_better(rule, float("nan"), 0.5)


@pytest.mark.parametrize("rule", SCORES)
def test_the_scores_of_ranks_are_those_of_one_machine(
    graph: Graph, on_ranks: Callable[..., list[Any]], rule: Any
) -> None:
    whole, problem = evaluated(graph, good=True)
    expected = score(rule, whole, problem, Alone(), Seed(0))

    def rank(ranks: Any) -> float:
        own = shard(graph, CCGCSettings(), ranks)
        part = torch.from_numpy(own.rows.own)
        clustering: Clustering = whole.clustering
        views = (whole.first[part], whole.second[part], whole.fused[part])
        return score(rule, Evaluated(*views, clustering), own, ranks, Seed(0))

    assert on_ranks(3, rank) == pytest.approx([expected] * 3, abs=1e-5)


# ---- consensus


def noisy(graph: Graph, seed: int, wrong: float) -> np.ndarray[Any, Any]:
    """True classes under other names, some of them replaced."""
    random = np.random.default_rng(seed)
    assert graph.labels is not None
    labels = random.permutation(3)[graph.labels]
    replaced = random.random(90) < wrong
    labels[replaced] = random.integers(0, 3, replaced.sum())
    return labels.astype(np.int16)


def test_the_consensus_is_better_than_each_clustering_whatever_their_numbers(graph: Graph) -> None:
    problem = shard(graph, CCGCSettings())
    assert graph.labels is not None
    each = [noisy(graph, seed, 0.5) for seed in range(12)]
    accuracies = [clustering_metrics(graph.labels, labels)["acc"] for labels in each]
    together = consensus([*each, *each], problem, Alone(), Seed(0))
    assert clustering_metrics(graph.labels, together)["acc"] > max(accuracies) + 5


def test_the_consensus_uses_the_second_half(graph: Graph) -> None:
    problem = shard(graph, CCGCSettings())
    early, late = ([noisy(graph, seed, wrong) for seed in range(6)] for wrong in (1.0, 0.1))
    assert np.array_equal(
        consensus([*early, *late], problem, Alone(), Seed(0)), consensus([*late, *late], problem, Alone(), Seed(0))
    )
    assert len(consensus([early[0]], problem, Alone(), Seed(0))) == 90, "of one clustering"


def test_the_consensus_of_ranks_is_that_of_one_machine(graph: Graph, on_ranks: Callable[..., list[Any]]) -> None:
    each = [noisy(graph, seed, 0.3) for seed in range(8)]
    alone = consensus(each, shard(graph, CCGCSettings()), Alone(), Seed(0))
    for found in on_ranks(2, lambda ranks: consensus(each, shard(graph, CCGCSettings(), ranks), ranks, Seed(0))):
        assert np.array_equal(found, alone)
