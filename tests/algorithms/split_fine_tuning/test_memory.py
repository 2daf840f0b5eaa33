"""Memory use does not grow with the number of steps."""

from __future__ import annotations

import gc
import tracemalloc
from typing import Any

import psutil
import pytest

from farshore.algorithms.split_fine_tuning.workload import WORKLOAD
from farshore.simulations.in_process import InProcessRun

STEPS = 1000


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_memory_is_flat_over_a_thousand_steps(runner: Any) -> None:
    changes = {"cut": "ffn_svd", "rank": 8, "up": "int4", "down": "int4", "dropout": 0.1, "micro_batches": 2}
    changes |= {"epochs": 400, "steps": STEPS, "eval_every": STEPS, "checkpoint_every": 500}
    held: dict[int, tuple[int, int]] = {}

    def look(done: int, total: int, values: Any) -> None:
        if done in (300, STEPS - 1):
            gc.collect()
            held[done] = tracemalloc.get_traced_memory()[0], psutil.Process().memory_info().rss

    run = InProcessRun(WORKLOAD, runner.config(**changes), runner.folder / "long", data=runner.data, on_progress=look)
    tracemalloc.start()
    try:
        run.run()
    finally:
        tracemalloc.stop()
    (python, resident), (python_later, resident_later) = held[300], held[STEPS - 1]
    # The run keeps one loss per step, for checkpoints; a message or graph per step would be a hundred times as large.
    assert python_later - python < 200 * (STEPS - 300)
    assert resident_later - resident < 16 << 20
