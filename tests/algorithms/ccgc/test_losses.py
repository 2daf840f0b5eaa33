"""Encoders, warm-up by the Gram identity, and the cluster-guided loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from farshore.algorithms.ccgc.cluster_loss import centers_loss, cluster_loss
from farshore.algorithms.ccgc.confident import Pairs, draw_pairs
from farshore.algorithms.ccgc.encoders import Encoders
from farshore.algorithms.ccgc.ranks import Alone, Rows
from farshore.algorithms.ccgc.settings import CCGCSettings
from farshore.algorithms.ccgc.warmup import warmup_loss
from farshore.core.seeds import Seed


def unit_rows(nodes: int, dim: int, seed: int = 0) -> Tensor:
    return normalize(torch.randn(nodes, dim, generator=torch.Generator().manual_seed(seed)))


# ---- encoders


@pytest.mark.parametrize(
    ("width", "parameters"),
    [(1433, 1_434_000), (3703, 3_704_000), (745, 746_000), (81, 82_000), (203, 204_000), (239, 240_000)],
)
def test_parameters_are_those_of_the_published_sizes(width: int, parameters: int) -> None:
    assert sum(p.numel() for p in Encoders(width, 500, 0).parameters()) == parameters


def test_views_have_unit_rows_and_the_fused_embedding_is_their_mean() -> None:
    x = torch.randn(30, 12) * 5
    encoders = Encoders(12, 7, 3)
    first, second, fused = encoders.embed(x)
    for view in (first, second):
        assert view.norm(dim=1) == pytest.approx(torch.ones(30), abs=1e-6)
    assert not torch.equal(first, second)
    assert torch.equal(fused, (first + second) / 2)
    assert encoders.first.weight.abs().max() <= 1 / 12**0.5
    shared = Encoders(12, 7, 3, shared=True)
    assert torch.equal(*shared(x))
    assert sum(1 for _ in shared.parameters()) == 2


# ---- warm-up


def naive(first: Tensor, second: Tensor) -> Tensor:
    return ((first @ second.T - torch.eye(len(first))) ** 2).mean()


def test_the_gram_identity_has_the_value_and_the_gradient_of_the_naive_loss() -> None:
    raw = [torch.randn(50, 8, requires_grad=True) for _ in range(2)]
    views = [normalize(x) for x in raw]
    expected, found = naive(*views), warmup_loss(views[0], views[1], 50)
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    for one, other in zip(
        torch.autograd.grad(expected, raw, retain_graph=True), torch.autograd.grad(found, raw), strict=True
    ):
        assert (one - other).norm() <= 1e-5 * one.norm()


def test_equal_orthonormal_views_have_no_warm_up_loss_and_random_ones_about_the_expected() -> None:
    orthonormal = torch.linalg.qr(torch.randn(20, 20))[0][:9]
    assert float(warmup_loss(orthonormal, orthonormal, 9)) == pytest.approx(0, abs=1e-6)
    nodes, dim = 400, 60
    found = float(warmup_loss(unit_rows(nodes, dim, 1), unit_rows(nodes, dim, 2), nodes))
    assert found == pytest.approx(1 / dim + 1 / nodes, rel=0.05)


def test_the_warm_up_of_ranks_is_that_of_one_machine(on_ranks: Callable[..., list[Any]]) -> None:
    first, second = unit_rows(31, 6, 1), unit_rows(31, 6, 2)
    leaves = [first.clone().requires_grad_(), second.clone().requires_grad_()]
    whole = warmup_loss(*leaves, 31)
    gradient = torch.cat(torch.autograd.grad(whole, leaves), dim=1)

    def rank(ranks: Any) -> tuple[float, Tensor]:
        own = torch.from_numpy(Rows.blocks(31, ranks.rank, ranks.size).own)
        parts = [first[own].requires_grad_(), second[own].requires_grad_()]
        loss = warmup_loss(*parts, 31, ranks)
        assert ranks.sent == {"all_reduce": 4 * (2 * 6 * 6 + 1)}, "two Gram matrices and a number"
        return float(loss.detach()), torch.cat(torch.autograd.grad(loss, parts), dim=1)

    found = on_ranks(3, rank)
    assert [loss for loss, _ in found] == pytest.approx([float(whole.detach())] * 3, rel=1e-5)
    assert torch.allclose(torch.cat([part for _, part in found]), gradient, atol=1e-7)


# ---- cluster-guided loss


def loss_of(first: Tensor, second: Tensor, sets: list[list[int]], **settings: Any) -> Any:
    made = CCGCSettings(**settings)
    at = np.arange(len(first))
    pairs = draw_pairs([np.array(each) for each in sets], made, Seed(0))
    return cluster_loss((first, second), at, pairs, len(sets), made, Rows.blocks(len(first), 0, 1), Alone())


def test_clusters_of_one_vector_have_no_positive_loss_and_antipodal_views_the_largest() -> None:
    view = torch.eye(3)[[0] * 10 + [1] * 10 + [2] * 10]
    sets = [list(range(10)), list(range(10, 20)), list(range(20, 30))]
    parts = loss_of(view, view, sets, alpha=0.25)
    assert float(parts.positive) == 0
    assert float(parts.negative) == 0, "centers are orthogonal"
    antipodal = loss_of(view, -view, sets)
    assert float(antipodal.positive) == pytest.approx(4 * 24 / 3), "3 clusters with 8 pairs at the squared distance 4"
    assert float(loss_of(view, -view, sets, pos_reduction="mean").positive) == pytest.approx(4)


def test_equal_centers_have_the_largest_negative_loss() -> None:
    for clusters in (2, 3, 5):
        view = torch.eye(4)[[0] * (4 * clusters)]
        sets = [list(range(4 * k, 4 * k + 4)) for k in range(clusters)]
        parts = loss_of(view, view, sets, alpha=2.0)
        assert float(parts.negative) == pytest.approx((clusters - 1) / clusters)
        assert float(parts.total) == pytest.approx(float(parts.positive) + 2 * float(parts.negative))
        assert float(loss_of(view, view, sets, negatives="none").negative) == 0


def test_the_diagonal_does_not_count_but_is_part_of_the_mean() -> None:
    one = torch.eye(3)
    assert float(centers_loss(one, one)) == 0
    assert float(centers_loss(one, one.roll(1, 0))) == pytest.approx(3 / 9)


def test_centers_are_normalized_means_of_all_confident_nodes() -> None:
    first, second = unit_rows(12, 5, 1), unit_rows(12, 5, 2)
    sets = [[0, 1, 2, 3, 4], [5, 6], [7, 8, 9, 10, 11]]
    centers = [torch.stack([normalize(view[each].mean(dim=0), dim=0) for each in sets]) for view in (first, second)]
    similarity = centers[0] @ centers[1].T
    similarity.fill_diagonal_(0)
    assert float(loss_of(first, second, sets).negative) == pytest.approx(float((similarity**2).mean()), rel=1e-5)


def test_a_random_node_may_stand_for_its_cluster() -> None:
    first, second = unit_rows(12, 5, 1), unit_rows(12, 5, 2)
    sets = [list(range(6)), list(range(6, 12))]
    pairs = draw_pairs([np.array(each) for each in sets], CCGCSettings(negatives="random_nodes"), Seed(0))
    assert [(len(one), len(other)) for one, other in pairs.members] == [(1, 1), (1, 1)]
    assert float(loss_of(first, second, sets, negatives="random_nodes").negative) > 0


@pytest.mark.parametrize("size", [2, 3])
def test_the_cluster_loss_of_ranks_is_that_of_one_machine(on_ranks: Callable[..., list[Any]], size: int) -> None:
    nodes, dim = 40, 6
    views = unit_rows(nodes, dim, 1), unit_rows(nodes, dim, 2)
    settings = CCGCSettings()
    sets = [np.arange(0, 40, 3), np.arange(1, 40, 3), np.arange(2, 40, 3)]
    pairs = draw_pairs(sets, settings, Seed(4))
    leaves = [view.clone().requires_grad_() for view in views]
    alone = Rows.blocks(nodes, 0, 1)
    whole = cluster_loss((leaves[0], leaves[1]), np.arange(nodes), pairs, 3, settings, alone, Alone())
    gradient = torch.cat(torch.autograd.grad(whole.total, leaves), dim=1)

    def rank(ranks: Any) -> tuple[Any, Tensor, int]:
        rows = Rows.blocks(nodes, ranks.rank, ranks.size)
        own = torch.from_numpy(rows.own)
        parts = views[0][own].requires_grad_(), views[1][own].requires_grad_()
        at = np.full(nodes, -1)
        at[rows.own] = np.arange(len(rows.own))
        found = cluster_loss(parts, at, pairs, 3, settings, rows, ranks)
        values = [float(each.detach()) for each in (found.total, found.positive, found.negative)]
        return values, torch.cat(torch.autograd.grad(found.total, parts), dim=1), ranks.sent["all_to_all"]

    found = on_ranks(size, rank)
    expected = [float(each.detach()) for each in (whole.total, whole.positive, whole.negative)]
    assert all(values == pytest.approx(expected, rel=1e-5) for values, *_ in found)
    assert torch.allclose(torch.cat([part for _, part, _ in found]), gradient, atol=1e-6)
    owner = Rows.blocks(nodes, 0, size).owner
    crossing = int((owner[pairs.first] != owner[pairs.second]).sum())
    assert sum(sent for *_, sent in found) == 2 * crossing * dim * 4, "a row each way for every pair on two ranks"


def test_no_pair_at_all_gives_zero_and_no_nan() -> None:
    view = unit_rows(4, 3)
    pairs = Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), [(np.array([0]),) * 2, (np.array([1]),) * 2])
    for reduction in ("sum", "mean"):
        settings = CCGCSettings.model_validate({"pos_reduction": reduction})
        rows = Rows.blocks(4, 0, 1)
        assert float(cluster_loss((view, view), np.arange(4), pairs, 2, settings, rows, Alone()).positive) == 0
