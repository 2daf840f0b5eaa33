"""Cost of a simulated round by the number of clients and the number of previous rounds; it should depend on neither.

    python benchmarks/flat_rounds.py            10,000 clients, 1,000 rounds of 100; then populations to 100,000
    python benchmarks/flat_rounds.py --quick    the same at a smaller scale, under a minute; gates are not judged

Clients return the model unchanged and run in this process, so that only the simulator is measured: CPU seconds (user
and system) and resident memory. Since noise only adds cost, the long run is repeated and the minimum of each round
counts; populations are measured in turns and likewise count with their minimum. On a busy machine no gate is judged.

The long run saves checkpoints. Populations are compared without: with up to 1,000 clients a checkpoint sends a frame to
every client, as to real nodes, which is recorded in the ledger (about 9 ms for 1,000).
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from _common import BUSY_PERCENT, Table, finish, gate, parser
from _echo import ECHO

from farshore.simulations.federated.simulation import Simulation

_PARAMETERS, _COHORT = 10_000, 100


def main() -> int:
    options = parser(__doc__).parse_args()
    rounds, repeats, short = (60, 1, 30) if options.quick else (1000, 5, 300)
    populations = (100, 1000, 10_000, 100_000)
    busy = psutil.cpu_percent(1.0)
    long = [measure(10_000, rounds) for _ in range(repeats)]
    cost = {n: float("inf") for n in populations}
    for _ in range(repeats):
        for n in populations:
            cost[n] = min(cost[n], per_round(measure(n, short, checkpoint_every=short)))
    time_slope = slope(np.min([run["cpu"] for run in long], axis=0))
    memory_slope = slope(long[0]["memory"])  # of the first run: later ones reuse its memory
    spread = max(abs(value / cost[populations[0]] - 1) for value in cost.values())
    busy = max(busy, psutil.cpu_percent(1.0))
    judged = True if busy <= BUSY_PERCENT and not options.quick else None
    scale = f"{repeats} x {rounds} rounds of {_COHORT} of 10,000 clients, {_PARAMETERS:,} parameters; "
    scale += f"then {repeats} x {short} without checkpoints"
    if busy > BUSY_PERCENT:
        scale += f"; the machine was busy ({busy:.0f} %): not judged"
    return finish(
        "flat_rounds",
        options,
        scale=scale,
        claim="memory and time of a round stay within 5 %, over 1,000 rounds and from 100 to 100,000 clients",
        figures={"time_slope": time_slope, "memory_slope": memory_slope, "ms_per_round": cost, "spread": spread},
        gates=[
            gate("round time, drift over the run", time_slope, "within ± 0.05", judged and abs(time_slope) <= 0.05),
            gate("memory, drift over the run", memory_slope, "within ± 0.05", judged and abs(memory_slope) <= 0.05),
            gate("cost of a round, 100 to 100,000 clients", spread, "within ± 0.05", judged and spread <= 0.05),
        ],
        tables=[
            Table(
                "CPU time of a round by population",
                ("clients", "ms a round"),
                [(f"{n:,}", f"{ms:.2f}") for n, ms in cost.items()],
            )
        ],
    )


def measure(population: int, rounds: int, **settings: int) -> dict[str, Any]:
    """Run a simulation; returns CPU seconds of each round and resident bytes after it."""
    me = psutil.Process()
    cpu, memory = [], []

    def on_progress(done: int, total: int, figures: Any) -> None:
        cpu.append(time.process_time())
        memory.append(me.memory_info().rss)

    config = ECHO.config.model_validate(
        {"rounds": rounds, "per_round": _COHORT, "parameters": _PARAMETERS, "eval_every": rounds, **settings}
    )
    with tempfile.TemporaryDirectory() as folder:
        Simulation(ECHO, config, Path(folder) / "run", population, on_progress=on_progress).run()
    return {"cpu": np.diff(cpu), "memory": np.array(memory[1:], float)}


def per_round(found: dict[str, Any]) -> float:
    """Mean CPU milliseconds per round, without the first tenth (warm-up)."""
    return float(found["cpu"][len(found["cpu"]) // 10 :].mean() * 1000)


def slope(values: Any) -> float:
    """Relative rise of a fitted line from start to end of the run, without the first tenth (warm-up)."""
    values = values[len(values) // 10 :]
    rise, start = np.polyfit(np.arange(len(values)), values, 1)
    return float(rise * len(values) / start)


if __name__ == "__main__":
    sys.exit(main())
