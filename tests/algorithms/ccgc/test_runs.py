"""Runs on the platform: several nodes compute what one does, send the bytes of the formulas, and leave pictures."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from farshore.algorithms.ccgc.confident import confident_nodes, confident_sets, draw_pairs
from farshore.algorithms.ccgc.config import CCGCConfig
from farshore.algorithms.ccgc.kmeans import INITIALIZATIONS
from farshore.algorithms.ccgc.parties import assign_nodes
from farshore.algorithms.ccgc.problem import shard
from farshore.algorithms.ccgc.training import Training
from farshore.core.seeds import Seed
from farshore.core.transfer import Transfer
from farshore.core.workloads import load
from farshore.data.graph_synthetic import make_graph
from farshore.reports.chart_files import read_charts
from farshore.simulations.in_process import InProcessRun

NODES, WIDTH, CLUSTERS, DIM = 600, 64, 4, 16
SEED = 3
SMALL = {"dim": DIM, "epochs": 16, "warmup": 6, "kmeans_every": 5, "log_every": 1, "transport": "star"}


@dataclass
class Ran:
    folder: Path
    result: dict[str, Any]
    metrics: dict[int, dict[str, float]]
    rows: list[Transfer] = field(default_factory=list)

    def uplink(self, kind: str, steps: range | list[int]) -> dict[int, int]:
        """Payload bytes by step, of one kind, from all nodes to the server."""
        found: Counter[int] = Counter()
        for row in self.rows:
            if row.kind == kind and row.direction == "up" and row.step in steps:
                found[row.step] += row.payload_bytes
        return dict(found)


def run(folder: Path, nodes: int, **settings: Any) -> Ran:
    config = CCGCConfig.model_validate({**SMALL, **settings})
    found = Ran(folder, {}, {})
    names = tuple(f"n{i}" for i in range(nodes))
    made = InProcessRun(load("ccgc"), config, folder, names, SEED, recorder=found.rows.append)
    made.on_metrics = lambda step, values: found.metrics.setdefault(step, {}).update(values)
    found.result = made.run()
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return run(tmp_path_factory.mktemp("alone"), 1)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return run(tmp_path_factory.mktemp("two"), 2)


def losses(ran: Ran) -> list[float]:
    return [ran.metrics[step]["loss"] for step in range(1, 17)]


def test_the_losses_of_two_nodes_are_those_of_one(alone: Ran, two: Ran) -> None:
    assert losses(two) == pytest.approx(losses(alone), rel=1e-4)
    assert two.result["ranks"] == 2
    assert two.result["acc"] == pytest.approx(alone.result["acc"], abs=0.5)
    assert {k: v for k, v in two.result.items() if k.startswith("kmeans")} == {
        k: v for k, v in alone.result.items() if k.startswith("kmeans")
    }


@pytest.mark.parametrize(
    "settings", [{"views": "shared"}, {"kmeans": "sklearn"}, {"input_pca": 10}, {"all_rules": True}]
)
def test_switches_give_the_same_on_three_nodes(tmp_path: Path, settings: Mapping[str, Any]) -> None:
    one, three = run(tmp_path / "one", 1, **settings), run(tmp_path / "three", 3, **settings)
    assert losses(three) == pytest.approx(losses(one), rel=1e-4)
    assert three.metrics[16].keys() == one.metrics[16].keys()


def test_one_node_alone_sends_nothing_but_figures_and_its_result(alone: Ran) -> None:
    assert {row.kind for row in alone.rows} <= {"control", "hello", "begin"}


# ---- bytes on the wire, as in section 7 of the page


PARAMETERS = 2 * (WIDTH + 1) * DIM


def kmeans_bytes(ran: Ran, step: int) -> int:
    """What a node sends in the clustering of a step with all-reduces."""
    start = 1 + DIM + INITIALIZATIONS * CLUSTERS * DIM
    return 4 * (start + int(ran.metrics[step]["kmeans_iterations"]) * CLUSTERS * (DIM + 1))


def test_a_warm_up_epoch_sends_two_gram_matrices_and_the_gradient(two: Ran) -> None:
    quiet = [2, 3, 4, 5]
    expected = 2 * 4 * (2 * DIM**2 + 1 + PARAMETERS)
    assert two.uplink("all_reduce", quiet) == dict.fromkeys(quiet, expected)
    assert two.uplink("all_to_all", quiet) == {}


def test_a_clustering_sends_a_label_and_a_distance_per_node_and_sums_per_iteration(two: Ran) -> None:
    (gathered,) = two.uplink("all_gather", [6]).values()
    assert gathered == 2 * NODES * 4
    warm_up = 2 * 4 * (2 * DIM**2 + 1 + PARAMETERS)
    metrics = 2 * 8 * CLUSTERS**2  # the contingency table, int64
    assert two.uplink("all_reduce", [6])[6] == warm_up + 2 * kmeans_bytes(two, 6) + metrics


def test_a_contrastive_epoch_sends_a_row_each_way_per_divided_pair_centers_and_the_gradient(tmp_path: Path) -> None:
    found = run(tmp_path, 2, mode="parties", partition="random")
    graph = make_graph(Seed(SEED))
    settings = CCGCConfig.model_validate(SMALL)
    training = Training(settings, shard(graph, settings), Seed(SEED))
    training.start()
    while training.epoch < 8:
        parts = training.step()
        if training.evaluates:
            training.evaluate(parts)
    owner = assign_nodes(graph, 2, "random", Seed(SEED))
    sets = confident_sets(training.labels, confident_nodes(training.distances, settings.tau))
    for epoch in (8, 9):
        pairs = draw_pairs(sets, settings, Seed(SEED).child("pairs", epoch))
        divided = int((owner[pairs.first] != owner[pairs.second]).sum())
        step = epoch + 1
        assert found.uplink("all_to_all", [step]) == {step: 2 * divided * DIM * 4}
        # Pairs are 80 % of tau N nodes, of which (n - 1)/n are on two ranks if nodes are assigned at random.
        assert divided == pytest.approx(0.8 * settings.tau * NODES / 2, rel=0.2)
        assert found.uplink("all_reduce", [step]) == {step: 2 * 4 * (2 * len(sets) * DIM + 1 + PARAMETERS)}


# ---- a graph of several owners


@pytest.mark.parametrize("partition", ["random", "regions"])
def test_parties_with_an_exact_halo_train_as_one_machine_and_send_the_halo_once(
    alone: Ran, tmp_path: Path, partition: str
) -> None:
    found = run(tmp_path, 2, mode="parties", partition=partition)
    assert losses(found) == pytest.approx(losses(alone), rel=1e-4)
    graph = make_graph(Seed(SEED))
    owner = assign_nodes(graph, 2, partition, Seed(SEED))  # type: ignore[arg-type]
    cross = graph.edges[:, owner[graph.edges[0]] != owner[graph.edges[1]]]
    boundary = len(np.unique(cross))
    hops = CCGCConfig().smoothing
    assert found.uplink("all_to_all", [0]) == {0: boundary * 4 * (1 + hops * WIDTH)}


def test_parties_that_drop_cross_edges_send_no_halo_and_lose_accuracy(alone: Ran, tmp_path: Path) -> None:
    found = run(tmp_path, 2, mode="parties", partition="random", halo="drop_cross_edges")
    assert found.uplink("all_to_all", [0]) == {}
    assert found.result["kmeans_smoothed"]["acc"] < alone.result["kmeans_smoothed"]["acc"]
    assert found.result["kmeans_x"] == alone.result["kmeans_x"]


def test_true_labels_of_parties_stay_with_them(alone: Ran, tmp_path: Path) -> None:
    found = run(tmp_path, 2, mode="parties", epochs=3)

    def classes(ran: Ran) -> bool:
        return any("text" in trace for chart in read_charts(ran.folder) for trace in chart.traces if "mode" in trace)

    assert classes(alone)
    assert not classes(found)


# ---- what a run leaves


def test_a_run_leaves_clusters_embedding_table_weights_and_pictures(alone: Ran) -> None:
    folder = alone.folder
    labels = np.load(folder / "labels.npy")
    assert labels.shape == (NODES,)
    assert np.load(folder / "embedding.npy").shape == (NODES, DIM)
    table = np.loadtxt(folder / "contingency.csv", delimiter=",")
    assert table.sum() == NODES
    assert table.sum(axis=1).tolist() == np.bincount(labels, minlength=CLUSTERS).tolist()
    assert [chart.name for chart in read_charts(folder)] == [
        "method-embedding-pca",
        "method-contingency",
        "method-metrics",
        "method-losses",
    ]
    assert (folder / "clusters.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "states" / "last.safetensors").exists()
    json.dumps(alone.result)


def test_the_result_has_the_selection_the_oracle_the_last_epoch_and_the_baselines(alone: Ran) -> None:
    rows = {"last", "best_oracle", "kmeans_x", "kmeans_smoothed", "kmeans_degree"}
    assert rows <= alone.result.keys()
    assert all(alone.result[row].keys() == {"acc", "nmi", "ari", "f1"} for row in rows)
    assert alone.result["best_oracle"]["acc"] >= alone.result["acc"]


def test_tsne_is_drawn_if_wanted(tmp_path: Path) -> None:
    found = run(tmp_path, 1, tsne=True, epochs=1)
    assert "method-embedding-tsne" in [chart.name for chart in read_charts(found.folder)]


def test_the_seed_of_the_settings_goes_before_that_of_the_run(alone: Ran, tmp_path: Path) -> None:
    same, other = run(tmp_path / "same", 1, seed=SEED), run(tmp_path / "other", 1, seed=SEED + 1)
    assert losses(same) == losses(alone)
    assert losses(other) != losses(alone)
