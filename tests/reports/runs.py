"""Run directories for tests of reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from farshore.core.transfer import Transfer
from farshore.runs.directory import RunDirectory


def federated(folder: Path, rounds: int = 4, nodes: int = 3, **info: Any) -> RunDirectory:
    """Write a run whose rounds send a model down and an update up; the score rises by 0.1 per round."""
    values = {"id": folder.name, "workload": "vhl", "config": {"targets": [0.25]}, "seed": 0, "nodes": [], **info}
    run = RunDirectory.create(folder, values)
    metrics = run.open_metrics()
    with run.open_ledger() as ledger:
        for number in range(1, rounds + 1):
            for node in range(nodes):
                ledger.record(Transfer(f"n{node}", "down", "model", "raw", number, 0, 0, 4000, 4000, 4100, 0, 1.0))
                ledger.record(Transfer(f"n{node}", "up", "update", "int8", number, 0, 0, 4000, 1000, 1100, 0, 1.0))
            metrics.write(number, {"acc": number / 10})
    metrics.close()
    return run
