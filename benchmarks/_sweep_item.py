"""An item of the sweep benchmark for other schedulers: the same work, in one of their worker processes."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from farshore.core.workloads import load
from farshore.simulations.sweeps.alone import limit_threads, run_alone
from farshore.simulations.sweeps.cells import method_config


def run_item(method: str, settings: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Run a method on one node alone with one thread; returns its metrics."""
    workload = load(method)
    limit_threads(workload, 1)
    with tempfile.TemporaryDirectory() as folder:
        return dict(run_alone(workload, method_config(workload, settings), seed, Path(folder) / "run", {}).metrics)
