"""The filter P: values of a path, spectrum, loops and isolated nodes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from farshore.algorithms.ccgc.smoothing import normalized_adjacency, smooth
from farshore.data.graph_set import Graph, undirected

PATH = np.array([[0, 1], [1, 2]])


def test_the_filter_of_a_path_has_the_values_by_hand() -> None:
    s = 1 / math.sqrt(6)
    expected = [[1 / 2, s, 0], [s, 1 / 3, s], [0, s, 1 / 2]]
    assert normalized_adjacency(PATH, 3).toarray() == pytest.approx(np.array(expected), abs=1e-6)


def test_two_hops_are_the_filter_applied_twice_and_none_is_off(path_graph: Graph) -> None:
    filter_ = normalized_adjacency(path_graph.edges, 4).toarray()
    x = np.asarray(path_graph.features)
    assert smooth(path_graph, 2) == pytest.approx(filter_ @ (filter_ @ x), rel=1e-5)
    assert np.array_equal(smooth(path_graph, 0), x)
    assert np.array_equal(smooth(path_graph, 3, np.array([1, 3])), smooth(path_graph, 3)[[1, 3]])


@pytest.mark.parametrize("hops", [1, 2, 5])
def test_an_isolated_node_keeps_its_attributes(path_graph: Graph, hops: int) -> None:
    assert np.array_equal(smooth(path_graph, hops)[3], np.asarray(path_graph.features)[3])


def test_edges_of_a_node_to_itself_do_not_change_the_filter(path_graph: Graph) -> None:
    edges, loops = undirected(np.array([[0, 1, 1, 2], [1, 2, 1, 2]]))
    assert loops.tolist() == [1, 2]
    with_loops = Graph("loops", edges, path_graph.features, loops=loops)
    assert np.array_equal(smooth(with_loops, 3), smooth(path_graph, 3))


def test_the_spectrum_is_in_minus_one_to_one_with_the_root_of_degrees_on_top(graph: Graph) -> None:
    filter_ = normalized_adjacency(graph.edges, graph.nodes).toarray().astype(np.float64)
    values = np.linalg.eigvalsh(filter_)
    assert values.min() > -1
    assert values.max() == pytest.approx(1, abs=1e-5)
    top = np.sqrt(np.bincount(graph.edges.ravel(), minlength=graph.nodes) + 1.0)
    assert filter_ @ top == pytest.approx(top, rel=1e-5)


def test_blocks_of_columns_do_not_change_the_result() -> None:
    random = np.random.default_rng(0)
    wide = Graph("wide", PATH, random.random((3, 700), np.float32))
    filter_ = normalized_adjacency(PATH, 3).toarray()
    assert smooth(wide, 1) == pytest.approx(filter_ @ np.asarray(wide.features), rel=1e-5)
