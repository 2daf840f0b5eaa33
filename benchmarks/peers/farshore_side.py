"""Run the work on farshore's simulator, with ledger and metrics: ``farshore_side.py WORK IMAGES EXECUTION``."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from work import Work, stamp

from farshore.core.projects import use_project
from farshore.core.workloads import load
from farshore.simulations.federated.simulation import Simulation

WORK, FOLDER = Work.loads(sys.argv[1]), sys.argv[2]
EXECUTION = sys.argv[3]


def main() -> None:
    """Run all rounds."""
    use_project(Path(__file__).resolve().parent)
    workload = load("benchmark_work")
    settings = {"rounds": WORK.rounds + 1, "per_round": WORK.cohort, "eval_every": 1 << 30, "checkpoint_every": 1 << 30}
    if EXECUTION != "default":
        settings["execution"] = EXECUTION
    config = workload.config.model_validate({**settings, "work": WORK.dumps()})

    def on_progress(done: int, total: int, _: Mapping[str, float | str]) -> None:
        if done == 1:
            stamp("begun")
        elif done == total:
            stamp("ended")

    with tempfile.TemporaryDirectory(prefix="farshore-") as folder:
        Simulation(
            workload,
            config,
            Path(folder) / "run",
            clients=WORK.clients,
            data={"images": Path(FOLDER)},
            workers=2,
            on_progress=on_progress,
        ).run()


if __name__ == "__main__":
    main()
