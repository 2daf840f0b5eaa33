"""Training: accumulated gradients, skipped steps, selections, checkpoints, ablations and results on a small graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from farshore.algorithms.ccgc import CCGC
from farshore.algorithms.ccgc.problem import number_of_clusters, shard
from farshore.algorithms.ccgc.settings import CCGCSettings
from farshore.algorithms.ccgc.training import Training
from farshore.core.errors import ConfigError
from farshore.core.seeds import Seed
from farshore.data.graph_set import Graph
from farshore.data.graph_synthetic import make_graph

SMALL = {"dim": 12, "epochs": 21, "warmup": 6, "kmeans_every": 5}


def training(graph: Graph, seed: int = 0, **settings: Any) -> Training:
    made = CCGCSettings.model_validate({**SMALL, **settings})
    found = Training(made, shard(graph, made), Seed(seed))
    found.start()
    return found


def run(found: Training, epochs: int) -> list[float]:
    losses = []
    for _ in range(epochs):
        parts = found.step()
        losses.append(parts["loss"])
        if found.evaluates:
            found.evaluate(parts)
    return losses


# ---- optimizer


@pytest.mark.parametrize("accumulates", [True, False])
def test_the_optimizer_sees_the_sum_of_all_gradients_or_the_newest(graph: Graph, accumulates: bool) -> None:
    found = training(graph, accumulate_grads=accumulates)
    by_hand = training(graph)
    optimizer = torch.optim.Adam(by_hand.encoders.parameters(), lr=by_hand.settings.lr, foreach=False)
    gradients: list[list[torch.Tensor]] = []
    x = by_hand.problem.smoothed
    for _ in range(2):
        first, second = by_hand.encoders(x)
        loss = ((first @ second.T - torch.eye(graph.nodes)) ** 2).mean()
        gradients.append(list(torch.autograd.grad(loss, list(by_hand.encoders.parameters()))))
        summed = gradients[-1] if not accumulates else [sum(each) for each in zip(*gradients, strict=True)]
        for parameter, gradient in zip(by_hand.encoders.parameters(), summed, strict=True):
            parameter.grad = gradient  # type: ignore[assignment]
        optimizer.step()
        found.step()
    for one, other, seen in zip(found.encoders.parameters(), by_hand.encoders.parameters(), summed, strict=True):
        assert torch.allclose(one, other, atol=1e-6)
        assert one.grad is not None
        assert torch.allclose(one.grad, seen, atol=1e-6)  # type: ignore[arg-type]


def test_without_confident_nodes_the_step_is_skipped_and_training_goes_on(graph: Graph) -> None:
    found = training(graph, tau=1e-9, warmup=0)
    before = [p.detach().clone() for p in found.encoders.parameters()]
    assert run(found, 6) == [0.0] * 6
    assert all(torch.equal(*pair) for pair in zip(before, found.encoders.parameters(), strict=True))
    assert len(found.history) == 2, "evaluations do not depend on the step"


def test_the_warm_up_has_the_published_number_of_epochs_and_then_clusters_are_used(graph: Graph) -> None:
    assert CCGCSettings().warmup == 51, "epochs 0 to 50"
    found = training(graph)
    for epoch in range(8):
        parts = found.step()
        assert (parts["loss_pos"] > 0) == (epoch >= 6)
        assert (parts["confident"] > 0) == (epoch >= 6)


# ---- results


def test_equal_seeds_give_equal_bits(graph: Graph) -> None:
    one, again, other = (CCGC(random_state=seed, **SMALL).fit(graph).result_ for seed in (0, 0, 1))
    assert np.array_equal(one.labels, again.labels)
    assert one.embedding.tobytes() == again.embedding.tobytes()
    assert one.history == again.history
    assert one.embedding.tobytes() != other.embedding.tobytes()


@pytest.mark.parametrize(
    "changes",
    [
        {"views": "shared"},
        {"smoothing": 0},
        {"positives": "self"},
        {"negatives": "none"},
        {"negatives": "random_nodes"},
        {"pos_reduction": "mean"},
        {"accumulate_grads": False},
        {"skip_first_cluster": True},
        {"kmeans": "sklearn"},
        {"input_pca": 5},
        {"tau": 0.2},
        {"alpha": 50.0},
        {"subsample": 0.3},
        {"warmup": 0},
    ],
    ids=lambda changes: "-".join(map(str, *changes.items())),
)
def test_every_switch_changes_the_training(graph: Graph, changes: dict[str, Any]) -> None:
    plain, changed = (CCGC(**{**SMALL, "select": "last", **more}).fit(graph).result_ for more in ({}, changes))
    assert changed.labels.shape == (90,)
    assert np.isfinite(changed.embedding).all()
    assert plain.embedding.tobytes() != changed.embedding.tobytes()


def test_without_smoothing_the_raw_attributes_are_encoded(graph: Graph) -> None:
    problem = shard(graph, CCGCSettings(smoothing=0))
    assert torch.equal(problem.raw, problem.smoothed)


def test_principal_components_keep_the_distances(graph: Graph) -> None:
    whole, few = (shard(graph, CCGCSettings(input_pca=n)).smoothed for n in (0, 40))
    assert torch.cdist(few, few) == pytest.approx(torch.cdist(whole, whole), abs=1e-3)
    with pytest.raises(ConfigError, match="input_pca=41 exceeds the 40 attributes"):
        shard(graph, CCGCSettings(input_pca=41))


def test_the_last_epoch_is_far_better_than_kmeans_on_raw_attributes() -> None:
    result = CCGC(select="last", epochs=61).fit(make_graph(Seed(0))).result_
    assert result.metrics["acc"] >= result.baselines["kmeans_x"]["acc"] + 10


# ---- selection


def test_each_selection_takes_the_epoch_that_it_names(graph: Graph) -> None:
    results = {name: CCGC(select=name, **SMALL).fit(graph).result_ for name in ("last", "best_oracle")}
    history = results["last"].history
    assert [entry["epoch"] for entry in history] == [0, 5, 10, 15, 20]
    assert results["last"].epoch == 20
    assert results["best_oracle"].metrics["acc"] == max(entry["acc"] for entry in history)
    lowest = min(entry["inertia_ratio"] for entry in history)
    chosen = [entry for entry in history if entry["inertia_ratio"] == lowest][-1]
    assert CCGC(rule="inertia_ratio", **SMALL).fit(graph).result_.epoch == chosen["epoch"]


def test_the_embedding_is_that_of_the_selected_epoch(graph: Graph) -> None:
    found = training(graph, select="best_oracle")
    run(found, 21)
    by_epoch = {entry["epoch"]: entry["acc"] for entry in found.history}
    chosen = [entry for entry in found.history if entry.get("selected")][-1]["epoch"]
    assert by_epoch[chosen] == max(by_epoch.values())
    again = training(graph, select="last")
    run(again, chosen + 1)
    assert torch.equal(found.selected_embedding(), again.encoders.embed(again.problem.smoothed)[2])


def test_the_last_epoch_is_evaluated_whatever_the_period(graph: Graph) -> None:
    found = CCGC(**{**SMALL, "epochs": 13}).fit(graph).result_
    assert [entry["epoch"] for entry in found.history] == [0, 5, 10, 12]


def test_baselines_stand_beside_every_result(graph: Graph) -> None:
    found = CCGC(**SMALL).fit(graph).result_
    assert found.baselines.keys() == {"kmeans_x", "kmeans_smoothed", "kmeans_degree"}
    assert all(row.keys() == {"acc", "nmi", "ari", "f1"} for row in found.baselines.values())


# ---- graphs without labels


def without_labels(graph: Graph) -> Graph:
    return Graph("bare", graph.edges, graph.features)


def test_labels_are_not_needed_and_not_used(graph: Graph) -> None:
    bare = CCGC(clusters=3, **SMALL).fit(without_labels(graph)).result_
    assert bare.metrics == {}
    assert bare.baselines == {}
    assert np.array_equal(bare.labels, CCGC(clusters=3, **SMALL).fit(graph).result_.labels)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "'bare' has no labels that say how many clusters there are"),
        ({"clusters": 1}, "clusters=1 is not between 2 and the 90 nodes"),
        ({"clusters": 91}, "clusters=91 is not between 2 and the 90 nodes"),
        ({"clusters": 3, "select": "best_oracle"}, "select=best_oracle needs true labels"),
    ],
)
def test_what_a_graph_without_labels_cannot_give_is_said(graph: Graph, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        number_of_clusters(without_labels(graph), CCGCSettings.model_validate(settings))


# ---- checkpoints


@pytest.mark.parametrize("at", [3, 6, 11])
def test_a_training_continues_from_its_arrays_with_the_same_bits(graph: Graph, at: int) -> None:
    whole, first, second = (training(graph) for _ in range(3))
    losses = run(whole, 21)
    run(first, at)
    second.load({name: array.copy() for name, array in first.arrays().items()}, list(first.history), at)
    assert run(second, 21 - at) == losses[at:]
    assert second.history == whole.history
    for name, array in whole.arrays().items():
        assert second.arrays()[name].tobytes() == array.tobytes(), name
