"""ACC, NMI, ARI and F1."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from farshore.algorithms.ccgc.metrics import agreement, clustering_metrics, contingency, metrics_of

TRUE = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2])
PREDICTED = np.array([1, 1, 0, 0, 0, 0, 2, 2, 1])
EXPECTED = {"acc": 77.78, "nmi": 58.95, "ari": 35.71, "f1": 77.46}


def test_the_example_has_the_known_values() -> None:
    assert clustering_metrics(TRUE, PREDICTED) == pytest.approx(EXPECTED, abs=5e-3)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_names_of_clusters_do_not_matter(order: tuple[int, ...]) -> None:
    assert clustering_metrics(TRUE, np.array(order)[PREDICTED]) == pytest.approx(EXPECTED, abs=5e-3)


def test_a_perfect_clustering_has_full_marks_and_a_constant_one_no_information() -> None:
    assert clustering_metrics(TRUE, (TRUE + 1) % 3) == pytest.approx(dict.fromkeys(EXPECTED, 100.0))
    constant = clustering_metrics(TRUE, np.zeros(9, int))
    assert constant["nmi"] == pytest.approx(0, abs=1e-9)
    assert constant["acc"] == pytest.approx(100 / 3)


def test_unmatched_clusters_count_as_errors() -> None:
    too_many = np.array([0, 0, 3, 1, 1, 1, 2, 2, 2])
    assert clustering_metrics(TRUE, too_many)["acc"] == pytest.approx(100 * 8 / 9)
    too_few = np.array([0, 0, 0, 1, 1, 1, 1, 1, 1])
    found = clustering_metrics(TRUE, too_few)
    assert found["acc"] == pytest.approx(100 * 6 / 9)
    assert found["f1"] == pytest.approx(100 * (1 + 2 / 3 + 0) / 3)


def test_the_table_is_all_that_is_needed() -> None:
    table = contingency(TRUE, PREDICTED, clusters=5, classes=4)
    assert table.shape == (5, 4)
    assert table.sum() == 9
    parts = sum(contingency(TRUE[i::2], PREDICTED[i::2], 3, 3) for i in range(2))
    assert metrics_of(np.asarray(parts)) == pytest.approx(EXPECTED, abs=5e-3)


def test_agreement_is_one_for_the_same_partition() -> None:
    assert agreement(TRUE, (TRUE + 2) % 3) == 1
    assert agreement(TRUE, PREDICTED) == pytest.approx(0.3571, abs=1e-4)
