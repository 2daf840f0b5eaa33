"""Clustering of attributed graphs by CCGC: oracle, last epoch and label-free selections, beside K-means.

Ten seeds per graph. Each row has the mean and the population standard deviation over seeds, in per cent. "Best of 41
by labels" picks, as the published code does, the evaluation with the best accuracy: an oracle. The K-means rows have
ten runs per seed; the one of the least inertia counts. Finished seeds are stored in --results; an interrupted run
continues there.

    python benchmarks/ccgc.py --data cora=DIR --data bat=DIR --results ccgc --json ccgc.json

The third table compares a graph that three parties own (first three seeds): with an exact halo, which gives the bits of
one machine, and without the edges between parties. The last is the peak memory of one warm-up step, forward and
backward, by the Gram identity and by the N x N matrices of the published code, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from _common import Gate, Table, finish, gate, parser

from farshore.algorithms.ccgc import CCGC, CCGCSettings
from farshore.algorithms.ccgc.parties import Partition, assign_nodes
from farshore.algorithms.ccgc.selection import LOWER_IS_BETTER, SCORES
from farshore.algorithms.ccgc.warmup import warmup_loss
from farshore.core.seeds import Seed
from farshore.data.graphs import Graph, load_graph, read_folder

#: Published ACC, NMI, ARI and F1 (arXiv 2301.01098, table of results).
PAPER = {
    "cora": (73.88, 56.45, 52.51, 70.98),
    "citeseer": (69.84, 44.33, 45.68, 62.71),
    "amap": (77.25, 67.44, 57.99, 72.18),
    "bat": (75.04, 50.23, 46.95, 74.90),
    "eat": (57.19, 33.85, 27.71, 57.09),
    "uat": (56.34, 28.15, 25.52, 55.24),
}
METRICS = ("acc", "nmi", "ari", "f1")
RULES = (*SCORES, "consensus")
#: Differences from the defaults; its learning rate is 1e-4, with which the airports fall short.
REFERENCE: dict[str, Any] = {"skip_first_cluster": True, "all_rules": True, "rule": "consensus"}
LEARNING_RATES = {"bat": 1e-3, "eat": 1e-3, "uat": 1e-3}
#: Owners of a graph, and seeds of that comparison.
PARTIES, PARTY_SEEDS = 3, 3
#: Sizes of the warm-up step: those of Amazon Photo, and of --quick.
NODES, QUICK_NODES, DIM = 7_650, 1_500, 500
CLAIM = "ACC by oracle selection: Cora 73.88, CiteSeer 69.84, BAT 75.04, EAT 57.19, UAT 56.34 (ten runs)"


def main() -> int:
    """Run the trials that are missing, then print and judge."""
    options = arguments()
    torch.set_num_threads(1)
    with ExitStack() as stack:
        folder = options.results or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        given = graphs(options)
        measured = {name: measure(name, graph, options.seeds, options, folder) for name, graph in given.items()}
        parted = {name: measure_parties(name, graph, options, folder) for name, graph in given.items()}
    tables = [results_table(measured), rules_table(measured), parties_table(measured, parted)]
    memory = {form: warmup_cost(form, QUICK_NODES if options.quick else NODES) for form in ("gram", "naive")}
    tables.append(memory_table(memory, QUICK_NODES if options.quick else NODES))
    scale = f"{len(options.seeds)} seeds, {options.epochs} epochs, d = {DIM}, t = 4, tau = alpha = 0.5, one thread"
    figures = {"trials": summary(measured), "warmup": memory}
    return finish(
        "ccgc",
        options,
        scale=scale,
        claim=CLAIM,
        figures=figures,
        gates=gates(measured, memory, options),
        tables=tables,
    )


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    cli = parser(__doc__)
    cli.add_argument(
        "--data", action="append", default=[], metavar="NAME=PATH", help="a graph, e.g. cora=DIR; repeatable"
    )
    cli.add_argument("--seeds", type=int, default=10, metavar="N", help="seeds 0 to N - 1 [10]")
    cli.add_argument("--epochs", type=int, default=400)
    cli.add_argument("--results", type=Path, metavar="DIR", help="keep finished seeds here")
    options = cli.parse_args()
    if options.quick:
        options.epochs, options.seeds = min(options.epochs, 61), min(options.seeds, 2)
    options.seeds = list(range(options.seeds))
    return options


def graphs(options: argparse.Namespace) -> dict[str, Graph]:
    """Load the synthetic graph and those that are given."""
    found = {"synthetic": load_graph("synthetic", Path, Seed(0))}
    for pair in options.data:
        name, _, path = pair.partition("=")
        found[name] = read_folder(Path(path), name)
    return found


def measure(
    name: str, graph: Graph, seeds: list[int], options: argparse.Namespace, folder: Path
) -> list[dict[str, Any]]:
    """Return the trials of a graph, one per seed."""
    rate = LEARNING_RATES.get(name.partition("-")[0], 1e-4)
    settings = {**REFERENCE, "epochs": options.epochs, "lr": rate}
    trials = []
    for seed in seeds:
        path = folder / f"{name}-{seed}-{options.epochs}.json"
        if not path.exists():
            path.write_text(json.dumps(trial(graph, settings, seed)))
        trials.append(json.loads(path.read_text()))
        best = max(trials[-1]["history"], key=lambda entry: float(entry["acc"]))["acc"]
        print(f"{name}, seed {seed}: best {best:.2f}", file=sys.stderr, flush=True)
    return trials


def measure_parties(
    name: str, graph: Graph, options: argparse.Namespace, folder: Path
) -> dict[str, list[dict[str, Any]]]:
    """Return the trials of a graph without the edges between parties, by how its nodes are assigned."""
    found = {}
    for partition in get_args(Partition)[1:]:
        owner = assign_nodes(graph, PARTIES, partition, Seed(0))
        edges = graph.edges[:, owner[graph.edges[0]] == owner[graph.edges[1]]]
        inner = Graph(graph.name, edges, graph.features, graph.labels, graph.loops)
        found[partition] = measure(f"{name}-{partition}", inner, options.seeds[:PARTY_SEEDS], options, folder)
    return found


def trial(graph: Graph, settings: dict[str, Any], seed: int) -> dict[str, Any]:
    """Train one seed; of seed 0 also measure CPU seconds, without the rules that are only compared."""
    seconds = None
    if seed == 0:
        start = time.process_time()
        CCGC(**{**settings, "all_rules": False}, random_state=seed).fit(graph)
        seconds = time.process_time() - start
    result = CCGC(**settings, random_state=seed).fit(graph).result_
    beside = {**result.baselines, "consensus": result.metrics}
    return {"history": list(result.history), "beside": beside, "seconds": seconds}


# ---- tables


def chosen(entry: dict[str, Any], rule: str) -> dict[str, float]:
    """Return the metrics of the evaluation that a rule selects."""
    history = entry["history"]
    if rule == "last":
        return dict(history[-1])
    sign = -1 if rule in LOWER_IS_BETTER else 1
    key = "acc" if rule == "oracle" else rule
    return dict(max(history, key=lambda one: (sign * float(one[key]), one["epoch"])))


def values(trials: list[dict[str, Any]], row: str) -> dict[str, list[float]]:
    """Return each metric over the seeds, of a selection, the consensus or a baseline."""
    found = [one["beside"][row] if row in one["beside"] else chosen(one, row) for one in trials]
    return {metric: [float(one[metric]) for one in found] for metric in METRICS}


def mean(trials: list[dict[str, Any]], row: str) -> float:
    """Return the mean accuracy."""
    return float(np.mean(values(trials, row)["acc"]))


def results_table(measured: dict[str, list[dict[str, Any]]]) -> Table:
    """Return one row per graph and way of clustering."""
    rule = CCGCSettings().rule
    names = {
        "oracle": "CCGC, best of 41 by labels",
        "last": "CCGC, last epoch",
        rule: f"CCGC, without labels ({rule})",
        "kmeans_x": "K-means on attributes",
        "kmeans_smoothed": "K-means on smoothed attributes",
        "kmeans_degree": "K-means on log(1 + degree)",
    }
    rows = []
    for name, trials in measured.items():
        if name in PAPER:
            rows.append([name, "paper", *(f"{value:.2f}" for value in PAPER[name]), "–"])
        seconds = f"{trials[0]['seconds']:.1f}"
        for row, title in names.items():
            cells = [f"{np.mean(found):.2f} ± {np.std(found):.2f}" for found in values(trials, row).values()]
            rows.append([name, title, *cells, seconds if row == "oracle" else "–"])
    return Table("Agreement with the true classes", ["graph", "", "ACC", "NMI", "ARI", "F1", "CPU s a seed"], rows)


def ranks(measured: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """Return the mean rank of each rule over the graphs; 1 is the best."""
    by_graph = [sorted(RULES, key=lambda rule: -mean(trials, rule)) for trials in measured.values()]
    return {rule: float(np.mean([order.index(rule) + 1 for order in by_graph])) for rule in RULES}


def rules_table(measured: dict[str, list[dict[str, Any]]]) -> Table:
    """Return the accuracy by rule."""
    order = ranks(measured)
    rows = []
    for rule in sorted(RULES, key=lambda each: order[each]):
        cells = [
            f"{mean(trials, rule):.2f} ± {np.std(values(trials, rule)['acc']):.2f}" for trials in measured.values()
        ]
        rows.append([rule, *cells, f"{order[rule]:.2f}"])
    return Table("ACC of selections without labels", ["rule", *measured, "mean rank"], rows)


def parties_table(
    measured: dict[str, list[dict[str, Any]]], parted: dict[str, dict[str, list[dict[str, Any]]]]
) -> Table:
    """Return the accuracy with and without the edges between parties, of the same seeds."""
    rule = CCGCSettings().rule
    rows = []
    for name, by_partition in parted.items():
        exact = measured[name][:PARTY_SEEDS]
        for title, trials in (
            ("exact halo", exact),
            *((f"{part}, edges dropped", t) for part, t in by_partition.items()),
        ):
            cells = [f"{mean(trials, row):.2f}" for row in (rule, "last", "oracle", "kmeans_smoothed")]
            rows.append([name, title, *cells])
    columns = ["graph", f"{PARTIES} parties", f"CCGC ({rule})", "last epoch", "best of 41", "K-means, smoothed"]
    return Table("ACC on a graph of several owners", columns, rows)


def summary(measured: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return the accuracies of each graph by row and seed."""
    rows = ("oracle", "last", *RULES, "kmeans_x", "kmeans_smoothed", "kmeans_degree")
    return {name: {row: values(trials, row)["acc"] for row in rows} for name, trials in measured.items()}


# ---- the warm-up


def warmup_cost(form: str, nodes: int) -> dict[str, float]:
    """Return peak memory (MB, above that before) and seconds of a step, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return dict(pool.apply(_warmup_step, (form, nodes)))


def _warmup_step(form: str, nodes: int) -> dict[str, float]:
    torch.set_num_threads(1)
    first, second = (torch.nn.functional.normalize(torch.randn(nodes, DIM)).requires_grad_() for _ in range(2))
    warmup_loss(first[:DIM], second[:DIM], DIM).backward()  # libraries are loaded
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    if form == "gram":
        loss = warmup_loss(first, second, nodes)
    else:
        loss = torch.nn.functional.mse_loss(first @ second.T, torch.eye(nodes))
    loss.backward()
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"megabytes": (peak - before) * 1024 / 1e6, "seconds": seconds, "loss": float(loss.detach())}


def memory_table(memory: dict[str, dict[str, float]], nodes: int) -> Table:
    """Return the cost of both forms."""
    names = {"gram": "Gram identity", "naive": "N x N matrices"}
    rows = [[names[form], f"{cost['megabytes']:.0f}", f"{cost['seconds']:.2f}"] for form, cost in memory.items()]
    return Table(f"A warm-up step at N = {nodes:,}, d = {DIM}", ["", "peak memory, MB", "CPU s"], rows)


def gates(
    measured: dict[str, list[dict[str, Any]]], memory: dict[str, dict[str, float]], options: argparse.Namespace
) -> list[Gate]:
    """Judge the goals."""
    full = not options.quick and len(options.seeds) >= 10 and options.epochs >= 400
    rule = CCGCSettings().rule
    found = []
    if "bat" in measured:
        oracle = mean(measured["bat"], "oracle")
        found.append(gate("BAT, ACC by oracle", oracle, "75.0 ± 2", abs(oracle - 75) <= 2 if full else None))
    if "cora" in measured:
        oracle = mean(measured["cora"], "oracle")
        found.append(gate("Cora, ACC by oracle", oracle, ">= 71.6", oracle >= 71.6 if full else None))
    for name, trials in measured.items():
        gain, least = mean(trials, rule) - mean(trials, "last"), 3.0 if name == "bat" else 0.0
        goal = f">= {least:g} points"
        found.append(
            gate(f"{name}, selection without labels above the last epoch", gain, goal, gain >= least if full else None)
        )
    ratio = memory["naive"]["megabytes"] / max(memory["gram"]["megabytes"], 1.0)
    found.append(gate("warm-up, memory of N x N / Gram", ratio, ">= 5", None if options.quick else ratio >= 5))
    return found


if __name__ == "__main__":
    sys.exit(main())
