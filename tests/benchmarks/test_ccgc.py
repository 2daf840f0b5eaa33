"""The graph-clustering benchmark: selections, ranks of rules, goals, and the two forms of the warm-up."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture
def bench(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("ccgc")


def trial(accuracies: list[float], **scores: list[float]) -> dict[str, Any]:
    names = ("inertia_ratio", "silhouette", "stability", "modularity", "conductance", "agreement")
    history = [
        {"epoch": 10 * i, "acc": acc, "nmi": 1.0, "ari": 2.0, "f1": 3.0}
        | {name: scores.get(name, [0.0] * len(accuracies))[i] for name in names}
        for i, acc in enumerate(accuracies)
    ]
    row = {"acc": 30.0, "nmi": 1.0, "ari": 1.0, "f1": 1.0}
    return {
        "history": history,
        "beside": dict.fromkeys(("kmeans_x", "kmeans_smoothed", "kmeans_degree", "consensus"), row),
        "seconds": 2.0,
    }


def test_a_selection_takes_the_evaluation_that_its_rule_prefers(bench: ModuleType) -> None:
    one = trial([50, 70, 60, 55], inertia_ratio=[0.5, 0.4, 0.3, 0.6], modularity=[0.1, 0.4, 0.4, 0.2])
    assert bench.chosen(one, "oracle")["acc"] == 70
    assert bench.chosen(one, "last")["acc"] == 55
    assert bench.chosen(one, "inertia_ratio")["acc"] == 60, "the lowest"
    assert bench.chosen(one, "modularity")["acc"] == 60, "the latest of the highest"
    assert bench.values([one], "kmeans_x")["acc"] == [30]


def test_rules_are_ranked_by_their_mean_accuracy_on_each_graph(bench: ModuleType) -> None:
    good = {"modularity": [0.0, 1.0, 0.0]}
    bad = {"inertia_ratio": [0.0, 1.0, 1.0]}
    measured = {"a": [trial([50, 70, 60], **good, **bad)], "b": [trial([40, 90, 60], **good, **bad)]}
    ranks = bench.ranks(measured)
    assert ranks["modularity"] == 1
    assert ranks["inertia_ratio"] == 6
    assert ranks["consensus"] == 7
    table = bench.rules_table(measured)
    assert table.rows[0][:3] == ["modularity", "70.00 ± 0.00", "90.00 ± 0.00"]
    assert [row[0] for row in table.rows[-2:]] == ["inertia_ratio", "consensus"]


def test_goals_are_judged_with_ten_seeds_only(bench: ModuleType) -> None:
    measured = {"bat": [trial([74.5, 60.0])], "cora": [trial([70.0, 60.0])]}
    memory = {"gram": {"megabytes": 10.0}, "naive": {"megabytes": 900.0}}
    full = argparse.Namespace(quick=False, seeds=list(range(10)), epochs=400)
    found = {gate.name: gate for gate in bench.gates(measured, memory, full)}
    assert found["BAT, ACC by oracle"].holds is True
    assert found["Cora, ACC by oracle"].holds is False
    assert found["warm-up, memory of N x N / Gram"].holds is True
    few = argparse.Namespace(quick=False, seeds=[0], epochs=400)
    assert all(gate.holds is None for gate in bench.gates(measured, memory, few) if "memory" not in gate.name)


def test_the_table_has_the_published_row_and_every_baseline(bench: ModuleType) -> None:
    table = bench.results_table({"bat": [trial([74.0, 60.0]), trial([76.0, 62.0])]})
    rows = {row[1]: row for row in table.rows}
    assert rows["paper"][2:6] == ["75.04", "50.23", "46.95", "74.90"]
    assert rows["CCGC, best of 41 by labels"][2] == "75.00 ± 1.00"
    assert {"K-means on attributes", "K-means on smoothed attributes", "K-means on log(1 + degree)"} <= rows.keys()


@pytest.mark.slow
def test_both_forms_of_the_warm_up_have_one_value_and_the_gram_identity_needs_less_memory(bench: ModuleType) -> None:
    gram, naive = (bench._warmup_step(form, 1500) for form in ("gram", "naive"))
    assert gram["loss"] == pytest.approx(naive["loss"], rel=0.05), "of other random rows"
    costs = {form: bench.warmup_cost(form, 3000)["megabytes"] for form in ("gram", "naive")}
    assert costs["naive"] > 3 * costs["gram"]
