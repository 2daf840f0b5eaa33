"""Descriptions of the files in a run directory, as ``farshore runs show`` prints them."""

from __future__ import annotations

from pathlib import Path

#: File name patterns and what such files contain, in the order of the listing.
_DESCRIPTIONS = {
    "result.json": "the run's result",
    "node_metrics.jsonl": "metrics reported by node programs",
    "metrics.jsonl": "metrics of every round or step: scores, bytes, seconds",
    "metrics.csv": "the same metrics for spreadsheets",
    "tensorboard": "the same metrics for TensorBoard",
    "rounds.jsonl": "participants of every round, missing clients with reasons, and the round's outcome",
    "clients.jsonl": "each client's own score",
    "sweep.csv": "a sweep's items: settings, seeds and metrics",
    "sweep.json": "the same items as JSON",
    "sweep.png": "picture of the cells of a sweep",
    "states/best.safetensors": "the model with the best score so far",
    "states/last.safetensors": "the model as of the last checkpoint",
    "charts": "charts of the method, which the report and the dashboard show",
    "clusters.png": "the same charts as an image",
    "labels.npy": "the cluster of each node of the graph",
    "embedding.npy": "the embedding of each node of the graph",
    "contingency.csv": "nodes by cluster (row) and true class (column)",
    "partition.json": "the samples that each client holds",
    "partition-report.json": "class counts per client, and how much the clients' distributions differ",
    "virtual.json": "recipe of the virtual data, and their digest",
    "failures.jsonl": "errors of failed programs, with tracebacks",
    "ledger-*.arrows": "every transfer",
    "ledger-*.sums": "digests of the ledger's blocks",
    "clocks.jsonl": "virtual clocks of the programs at checkpoints, of a simulation",
    "node-states": "checkpoints and streams of a simulation's nodes",
    "checkpoints": "checkpoints for resuming the run",
    "log.txt": "log",
    "log-*.txt": "older parts of the log",
}


def contents(folder: Path) -> list[tuple[str, str]]:
    """List names and descriptions of the files that exist in a run's ``folder``; names are relative to it."""
    return [(name, description) for name, description in _DESCRIPTIONS.items() if any(folder.glob(name))]
