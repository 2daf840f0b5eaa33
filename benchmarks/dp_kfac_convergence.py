"""Convergence of DP-KFAC against K-FAC with shared factors and tuned SGD, on four gloo ranks with equal tuning budgets.

Learning rate, momentum, learning rate decay and K-FAC's KL bound are tuned on one seed with the same number of trials
for each method, and evaluated on others. With ``--cifar10 DIR`` a ResNet-20 is trained too, and the steps to a given
training loss are counted.

    python benchmarks/dp_kfac_convergence.py --cifar10 DIR --json dp_kfac_convergence.json
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from _common import Gate, Table, finish, gate, parser
from _training_ranks import Job, train

CLAIM = "DP-KFAC keeps the convergence of K-FAC with shared factors (the paper's abstract)"
KFAC = {"factor_steps": 1, "inv_steps": 5, "grad_exchange": "owner"}
SHARED_FACTORS = {"factor_steps": 1, "inv_steps": 5, "strategy": "mem_opt"}
#: Method -> settings of the preconditioner, and whether shards are sorted by label.
METHODS: dict[str, tuple[dict[str, Any] | None, bool]] = {
    "SGD": (None, False),
    "K-FAC, all factors": (SHARED_FACTORS, False),
    "DP-KFAC": (KFAC, False),
    "K-FAC, all factors, sorted shards": (SHARED_FACTORS, True),
    "DP-KFAC, sorted shards": (KFAC, True),
    "DP-KFAC reduce, sorted shards": ({**KFAC, "factor_source": "reduce"}, True),
    "DP-KFAC rotate, sorted shards": ({**KFAC, "factor_source": "rotate"}, True),
}
TASKS = {"autoencoder": 150, "perceptron": 120}
#: The autoencoder's loss is half the squared error, whose factors are a quarter; so is the equivalent damping.
DAMPING = {"autoencoder": 0.0075, "perceptron": 0.03, "resnet20": 0.03}
CIFAR_RATES = (0.01, 0.03, 0.1, 0.3)
#: Search space of all methods: momentum, and whether the learning rate decays. SGD: learning rates. K-FAC, whose KL
#: bound limits most steps: fewer learning rates, and bounds.
COMMON_TRIALS = list(itertools.product([0.5, 0.9], [False, True]))
SGD_TRIALS: list[tuple[float, float | None]] = [(10 ** (-1.75 + 0.25 * k), None) for k in range(8)]
KFAC_TRIALS: list[tuple[float, float | None]] = list(itertools.product([0.03, 0.1], [3e-4, 1e-3, 3e-3, 1e-2]))


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    cli = parser(__doc__)
    cli.add_argument("--seeds", type=lambda text: [int(s) for s in text.split(",")], default=[1, 2, 3])
    cli.add_argument("--tasks", default="autoencoder,perceptron")
    cli.add_argument("--cifar10", type=Path, metavar="DIR", help="also train a ResNet-20 on CIFAR-10")
    cli.add_argument("--cifar-steps", type=int, default=300)
    cli.add_argument("--cifar-images", type=int, default=10000)
    options = cli.parse_args()
    if options.quick:
        options.seeds, options.tasks, options.cifar10 = [1], "perceptron", None
    return options


def steps_of(task: str, options: argparse.Namespace) -> int:
    """Number of training steps."""
    return 10 if options.quick else TASKS[task]


def trials(task: str, method: str, steps: int) -> list[Job]:
    """Build a method's tuning trials, on seed 0."""
    kfac, skewed = METHODS[method]
    common: dict[str, Any] = {"task": task, "seed": 0, "steps": steps, "skewed": skewed}
    own = SGD_TRIALS if kfac is None else KFAC_TRIALS
    return [
        Job(
            lr=lr,
            momentum=momentum,
            falling=falling,
            kfac=None if kfac is None else {**kfac, "damping": DAMPING[task], "kl_clip": bound},
            **common,
        )
        for (lr, bound), (momentum, falling) in itertools.product(own, COMMON_TRIALS)
    ]


def tuned(task: str, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Tune each method; returns the losses of its best trial on the other seeds."""
    steps = steps_of(task, options)
    methods = list(METHODS)[:3] if options.quick else list(METHODS)
    candidates = {m: trials(task, m, steps)[:: 11 if options.quick else 1] for m in methods}
    first = train([job for jobs in candidates.values() for job in jobs])
    best = {m: min(jobs, key=lambda job: _finite(first[job.key()][-1])) for m, jobs in candidates.items()}
    again = {m: [replace(job, seed=seed) for seed in options.seeds] for m, job in best.items()}
    second = train([job for jobs in again.values() for job in jobs])
    return {
        m: {
            "losses": [second[job.key()][-1] for job in again[m]],
            "lr": best[m].lr,
            "momentum": best[m].momentum,
            "falling": best[m].falling,
            "kl_clip": (best[m].kfac or {}).get("kl_clip"),
            "trials": len(candidates[m]),
        }
        for m in methods
    }


def steps_to_loss(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Train ResNet-20 on CIFAR-10; loss of 2,000 training images every 20 steps, at the best of four learning rates."""
    common: dict[str, Any] = {
        "task": "resnet20",
        "seed": 0,
        "steps": options.cifar_steps,
        "every": 20,
        "images": str(options.cifar10),
        "count": options.cifar_images,
        "tested": min(2_000, options.cifar_images),
    }
    slow = {"damping": DAMPING["resnet20"], "factor_steps": 5, "inv_steps": 25}
    jobs = {
        "SGD": [Job(lr=lr, **common) for lr in CIFAR_RATES],
        "DP-KFAC": [Job(lr=lr, kfac={**KFAC, **slow, "kl_clip": 1e-2}, **common) for lr in CIFAR_RATES],
    }
    found = train([job for candidates in jobs.values() for job in candidates])
    best_runs = {}
    for method, candidates in jobs.items():
        best = min(candidates, key=lambda job: _finite(found[job.key()][-1]))
        best_runs[method] = {"lr": best.lr, "losses": found[best.key()], "every": 20}
    return best_runs


def reached(losses: list[float], every: int, target: float) -> int | None:
    """First evaluated step whose loss is at most the target."""
    return next(((i + 1) * every for i, loss in enumerate(losses) if loss <= target), None)


def _finite(value: float) -> float:
    return value if math.isfinite(value) else float("inf")


def _mean(row: dict[str, Any]) -> float:
    return statistics.fmean(row["losses"])


def gates(found: dict[str, dict[str, dict[str, Any]]], judged: bool) -> list[Gate]:
    """Gates on the autoencoder's losses."""
    rows = found.get("autoencoder", {})
    if not rows:
        return []
    dp, shared_loss, sgd = (_mean(rows[m]) for m in ("DP-KFAC", "K-FAC, all factors", "SGD"))
    local, reduced = (_mean(rows[f"DP-KFAC{m}, sorted shards"]) for m in ("", " reduce"))
    shared = _mean(rows["K-FAC, all factors, sorted shards"])
    return [
        gate(
            "loss, DP-KFAC / K-FAC with shared factors",
            dp / shared_loss,
            "<= 1.05",
            dp / shared_loss <= 1.05 if judged else None,
        ),
        gate("loss, DP-KFAC / tuned SGD", dp / sgd, "<= 0.85", dp / sgd <= 0.85 if judged else None),
        gate("sorted shards: loss, local / shared factors", local / shared, "> 1", local > shared if judged else None),
        gate(
            "sorted shards: share of the gap left with factor_source=reduce",
            abs(reduced - shared) / max(abs(local - shared), 1e-12),
            "<= 0.5",
            abs(reduced - shared) <= 0.5 * abs(local - shared) if judged else None,
        ),
    ]


def trials_each(found: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Format the number of trials per method."""
    return "/".join(sorted({str(row["trials"]) for rows in found.values() for row in rows.values()}))


def main() -> int:
    """Tune, train on other seeds, and report."""
    options = parse_options()
    found = {task: tuned(task, options) for task in options.tasks.split(",")}
    tables = []
    for task, rows in found.items():
        shown = [
            [
                m,
                f"{_mean(row):.4g}",
                f"{min(row['losses']):.4g} – {max(row['losses']):.4g}",
                f"{row['lr']:.3g}{', decays' if row['falling'] else ''}",
                f"{row['momentum']:g}",
                "–" if row["kl_clip"] is None else f"{row['kl_clip']:g}",
            ]
            for m, row in rows.items()
        ]
        title = f"{task}, digits, training loss after {steps_of(task, options)} steps of 4 x 32"
        tables.append(Table(title, ["method", "loss, mean", "range", "lr", "momentum", "κ"], shown))
    figures: dict[str, Any] = {"tuned": found}
    judged_gates = gates(found, not options.quick and len(options.seeds) >= 2)
    if options.cifar10:
        curves = steps_to_loss(options)
        figures["cifar10"] = curves
        every = curves["SGD"]["every"]
        target = curves["SGD"]["losses"][-1]
        steps = {m: reached(row["losses"], every, target) for m, row in curves.items()}
        rows = [[m, f"{row['losses'][-1]:.3f}", str(steps[m]), f"{row['lr']:g}"] for m, row in curves.items()]
        title = f"ResNet-20, {options.cifar_images:,} images of CIFAR-10: steps to a training loss of {target:.3f}"
        tables.append(Table(title, ["method", f"loss after {options.cifar_steps} steps", "steps to it", "lr"], rows))
        reach = steps["DP-KFAC"] or options.cifar_steps + every  # not reached: a lower bound
        share = reach / steps["SGD"]
        holds = None if options.quick else share < 1
        judged_gates.append(gate("CIFAR-10: steps to SGD's last loss, DP-KFAC / SGD", share, "< 1", holds))
    return finish(
        "dp_kfac_convergence",
        options,
        scale=f"4 processes; seeds {','.join(map(str, options.seeds))}, {trials_each(found)} trials a method on seed 0",
        claim=CLAIM,
        figures=figures,
        gates=judged_gates,
        tables=tables,
    )


if __name__ == "__main__":
    sys.exit(main())
