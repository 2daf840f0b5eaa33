"""What the files of a run directory are, in words."""

from __future__ import annotations

from pathlib import Path

#: Patterns of names, and what such files hold; in the order in which they are told.
_MEANINGS = {
    "result.json": "what the run came to",
    "node_metrics.jsonl": "figures that node programs reported",
    "metrics.jsonl": "figures of every round or step: scores, bytes, seconds",
    "metrics.csv": "the same figures for spreadsheets",
    "tensorboard": "the same figures for TensorBoard",
    "rounds.jsonl": "who took part in which round, who is missing and why, and what came of it",
    "clients.jsonl": "each client's own score",
    "states/best.safetensors": "the model with the best score so far",
    "states/last.safetensors": "the model as of the last checkpoint",
    "partition.json": "which samples each client holds",
    "partition-report.json": "how many of which class, and how unlike the clients are",
    "virtual.json": "what the virtual data are made by, and their digest",
    "failures.jsonl": "what programs died of, with tracebacks",
    "ledger-*.arrows": "every transfer",
    "checkpoints": "what a killed run goes on from",
    "log.txt": "lines for people",
    "log-*.txt": "older lines",
}


def contents(folder: Path) -> list[tuple[str, str]]:
    """Names of the files that are there, relative to a run's ``folder``, each with what it holds."""
    return [(name, meaning) for name, meaning in _MEANINGS.items() if any(folder.glob(name))]
