"""Confident nodes and the pairs of an epoch."""

from __future__ import annotations

import numpy as np
import pytest

from farshore.algorithms.ccgc.confident import confident_nodes, confident_sets, draw_pairs
from farshore.algorithms.ccgc.settings import CCGCSettings
from farshore.core.seeds import Seed


def test_the_nearest_half_is_confident_without_ties_at_the_threshold() -> None:
    distances = np.arange(10, dtype=np.float32)
    assert np.flatnonzero(confident_nodes(distances, 0.5)).tolist() == [0, 1, 2, 3, 4]
    assert np.flatnonzero(confident_nodes(distances[::-1], 0.5)).tolist() == [5, 6, 7, 8, 9]
    tied = np.array([0, 1, 2, 2, 2, 2, 3, 4], np.float32)
    assert np.flatnonzero(confident_nodes(tied, 0.5)).tolist() == [0, 1], "those at the threshold 2 are left out"
    assert confident_nodes(distances, 1e-6).sum() == 0
    assert confident_nodes(distances, 1.0).sum() == 9


def test_sets_are_in_the_order_of_clusters_and_the_first_may_be_left_out() -> None:
    labels = np.array([2, 0, 0, 3, 2, 1])
    confident = np.array([True, True, True, True, True, False])
    sets = confident_sets(labels, confident)
    assert [each.tolist() for each in sets] == [[1, 2], [0, 4], [3]], "cluster 1 has no confident node"
    assert [each.tolist() for each in confident_sets(labels, confident, skip_first=True)] == [[0, 4], [3]]
    assert confident_sets(labels, np.zeros(6, bool)) == []


def test_both_subsets_are_independent_draws_without_repetition() -> None:
    sets = [np.arange(100), np.arange(100, 153)]
    pairs = draw_pairs(sets, CCGCSettings(), Seed(1))
    assert len(pairs.first) == len(pairs.second) == 80 + 42
    for chosen in (pairs.first, pairs.second):
        assert len(np.unique(chosen)) == len(chosen)
    assert ((pairs.first < 100) == (pairs.second < 100)).all(), "both nodes are of one cluster"
    assert not np.array_equal(np.sort(pairs.first), np.sort(pairs.second))
    again, other = (draw_pairs(sets, CCGCSettings(), Seed(seed)) for seed in (1, 2))
    assert np.array_equal(pairs.first, again.first)
    assert not np.array_equal(pairs.first, other.first)


def test_a_cluster_of_one_node_has_no_pair() -> None:
    pairs = draw_pairs([np.array([5]), np.array([7, 8])], CCGCSettings(), Seed(0))
    assert len(pairs.first) == 1
    assert pairs.first[0] in (7, 8)


def test_a_node_may_be_its_own_positive() -> None:
    pairs = draw_pairs([np.arange(20)], CCGCSettings(positives="self"), Seed(0))
    assert np.array_equal(pairs.first, pairs.second)


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_subsample_sets_the_share(share: float) -> None:
    pairs = draw_pairs([np.arange(20)], CCGCSettings(subsample=share), Seed(0))
    assert len(pairs.first) == int(20 * share)
