"""A graph of several owners: halo exchange, its bytes, and what is lost without the edges between parties."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from farshore.algorithms.ccgc.parties import HaloExchange, assign_nodes, cut_out, party_problem, smooth_party
from farshore.algorithms.ccgc.ranks import Rows
from farshore.algorithms.ccgc.settings import CCGCSettings
from farshore.algorithms.ccgc.smoothing import smooth
from farshore.core.seeds import Seed
from farshore.data.graph_set import Graph

PARTITIONS: Any = ("blocks", "random", "regions")


@pytest.mark.parametrize("partition", PARTITIONS)
def test_every_node_has_one_party_and_parties_have_equal_sizes(graph: Graph, partition: Any) -> None:
    owner = assign_nodes(graph, 4, partition, Seed(0))
    assert sorted(np.bincount(owner).tolist()) == [22, 22, 23, 23]
    assert np.array_equal(owner, assign_nodes(graph, 4, partition, Seed(0)))


def test_regions_have_fewer_edges_between_them_than_random_parts(graph: Graph) -> None:
    cross = {}
    for partition in ("random", "regions"):
        owner = assign_nodes(graph, 3, partition, Seed(0))  # type: ignore[arg-type]
        cross[partition] = int((owner[graph.edges[0]] != owner[graph.edges[1]]).sum())
    assert cross["regions"] < cross["random"]


@pytest.mark.parametrize("hops", [0, 1, 4])
@pytest.mark.parametrize("partition", PARTITIONS)
def test_an_exact_halo_gives_the_bits_of_one_machine_for_the_bytes_of_the_formula(
    graph: Graph, on_ranks: Callable[..., list[Any]], partition: Any, hops: int
) -> None:
    owner = assign_nodes(graph, 3, partition, Seed(0))
    expected = smooth(graph, hops)

    def rank(ranks: Any) -> Any:
        rows = Rows(owner, ranks.rank, 3)
        party = cut_out(graph, rows)
        return rows.own, smooth_party(party, hops, "exact", ranks), ranks.sent

    for own, smoothed, sent in on_ranks(3, rank):
        assert smoothed.tobytes() == expected[own].tobytes()
        party_of = owner[own[0]]
        boundary = sum(
            len({u for u, v in ends(graph) if owner[u] == party_of and owner[v] == other})
            for other in range(3)
            if other != party_of
        )
        assert sent["all_to_all"] == boundary * 4 * (1 + hops * graph.width), "degrees once, attributes in each hop"


def ends(graph: Graph) -> list[tuple[int, int]]:
    pairs = graph.edges.T.tolist()
    return [(u, v) for u, v in pairs] + [(v, u) for u, v in pairs]


def test_without_cross_edges_nothing_is_sent_and_each_party_smooths_its_own_graph(
    graph: Graph, on_ranks: Callable[..., list[Any]]
) -> None:
    owner = assign_nodes(graph, 3, "random", Seed(0))
    inner = graph.edges[:, owner[graph.edges[0]] == owner[graph.edges[1]]]
    expected = smooth(Graph("inner", inner, graph.features), 3)

    def rank(ranks: Any) -> Any:
        rows = Rows(owner, ranks.rank, 3)
        return rows.own, smooth_party(cut_out(graph, rows), 3, "drop_cross_edges", ranks), ranks.sent

    for own, smoothed, sent in on_ranks(3, rank):
        assert np.array_equal(smoothed, expected[own])
        assert sent == {}


def test_a_party_knows_its_own_attributes_labels_and_edges_only(graph: Graph) -> None:
    owner = assign_nodes(graph, 3, "random", Seed(0))
    party = cut_out(graph, Rows(owner, 1, 3))
    assert graph.labels is not None
    assert party.labels is not None
    assert len(party.features) == len(party.labels) == (owner == 1).sum()
    assert (owner[party.edges] == 1).any(axis=0).all()
    assert party.edges.shape[1] < graph.edges.shape[1]


def test_parties_share_every_edge_once(graph: Graph, on_ranks: Callable[..., list[Any]]) -> None:
    owner = assign_nodes(graph, 2, "random", Seed(0))
    for halo in ("exact", "drop_cross_edges"):

        def rank(ranks: Any, halo: Any = halo) -> Any:
            return party_problem(graph, Rows(owner, ranks.rank, 2), CCGCSettings(), halo, ranks)

        problems = on_ranks(2, rank)
        count = sum(problem.edges.shape[1] for problem in problems)
        inside = int((owner[graph.edges[0]] == owner[graph.edges[1]]).sum())
        assert count == (graph.edges.shape[1] if halo == "exact" else inside)
        degrees = np.concatenate([np.expm1(problem.log_degree[:, 0].numpy()) for problem in problems])
        assert degrees.sum() == pytest.approx(2 * count, rel=1e-5)


def test_both_sides_of_a_border_agree_on_the_nodes_that_they_exchange(graph: Graph) -> None:
    owner = assign_nodes(graph, 2, "random", Seed(0))
    sides: list[Any] = []
    for rank in range(2):
        rows = Rows(owner, rank, 2)
        sides.append(HaloExchange(rows, cut_out(graph, rows).edges, None))  # type: ignore[arg-type]
    assert np.array_equal(sides[0].outgoing[1], sides[1].halo)
    assert np.array_equal(sides[1].outgoing[0], sides[0].halo)
