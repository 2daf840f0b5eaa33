"""Run the unfinished trials of a benchmark in parallel, printing a line for each finished one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from farshore.reports.curves import Curve, read_curve
from farshore.runs.directory import RunDirectory
from farshore.simulations.experiment import Experiment, cores
from farshore.simulations.trial import Trial


def run_unfinished(trials: Sequence[Trial]) -> None:
    """Run the trials that have not finished."""
    unfinished = [trial for trial in trials if not trial.finished()]
    done = len(trials) - len(unfinished)

    def on_event(trial: Trial, event: Mapping[str, Any]) -> None:
        nonlocal done
        if event["type"] == "finished":
            done += 1
            print(f"[{done}/{len(trials)}] {trial.name}: last10 {event['result']['acc_last10']:.4f}", flush=True)

    Experiment(unfinished, cores(), on_event).run()


def run_trials(trials: Sequence[Trial]) -> dict[str, dict[int, Curve]]:
    """Run the trials that have not finished; returns arm -> seed -> accuracy by round."""
    run_unfinished(trials)
    curves: dict[str, dict[int, Curve]] = {}
    for trial in trials:
        curves.setdefault(trial.arm, {})[trial.seed] = read_curve(RunDirectory(Path(trial.directory)), "acc")
    return curves
