"""Trials of a benchmark: those that have not finished are trained, side by side, and each is told when it ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from farshore.reports.curves import Curve, read_curve
from farshore.runs.directory import RunDirectory
from farshore.simulations.experiment import Experiment, cores
from farshore.simulations.trial import Trial


def train(wanted: Sequence[Trial]) -> None:
    """Train what has not finished."""
    left = [trial for trial in wanted if not trial.finished()]
    done = len(wanted) - len(left)

    def on_event(trial: Trial, event: Mapping[str, Any]) -> None:
        nonlocal done
        if event["type"] == "finished":
            done += 1
            print(f"[{done}/{len(wanted)}] {trial.name}: last10 {event['result']['acc_last10']:.4f}", flush=True)

    Experiment(left, cores(), on_event).run()


def trained(wanted: Sequence[Trial]) -> dict[str, dict[int, Curve]]:
    """Train what has not finished; arm -> seed -> accuracy by round."""
    train(wanted)
    curves: dict[str, dict[int, Curve]] = {}
    for trial in wanted:
        curves.setdefault(trial.arm, {})[trial.seed] = read_curve(RunDirectory(Path(trial.directory)), "acc")
    return curves
