"""FedAvg with and without virtual data on all of CIFAR-10, at a scale that two cores can train.

All 50,000 images at full size, a small convolutional network with batch norm, and a hundred rounds: ten clients, LDA
0.1, five clients per round, one local epoch, on paired seeds. There are no gates: the result is reported as it is.
Finished runs are stored in --results; an interrupted one resumes from its checkpoint.

    python benchmarks/vhl_cifar10.py --cifar10 DIR --results vhl_cifar10 --json vhl_cifar10.json
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from _common import finish, parser
from _trials import run_trials
from vhl_accuracy import gains, table

from farshore.core.workloads import load
from farshore.reports.arms import compare
from farshore.simulations.trial import Trial, folder_of

CLAIM = (
    "FedAvg 79.98 -> 87.82 % on CIFAR-10, alpha 0.1 (ResNet-18, 1,000 rounds on a GPU; the second figure unverified)"
)
SETTINGS: dict[str, Any] = {
    "dataset": "cifar10",
    "partition": {"kind": "lda", "alpha": 0.1, "min_size": 10},
    "model": "conv3",
    "local_epochs": 1,
    "batch": 64,
    "momentum": 0.9,
    "augment": "official",
    "normalize": "official",
}
VIRTUAL = {"generator": "upsampled_noise", "per_class": 200, "batch": 64}
CLIENTS = 10


def trials(options: argparse.Namespace) -> list[Trial]:
    """Build a trial per arm and seed, ordered by seed."""
    model = load("vhl").config
    common = {**SETTINGS, "rounds": options.rounds, "per_round": options.per_round, "lr": options.lr}
    arms = {"BN FedAvg": {**common, "virtual": {"enabled": False}}, "BN FedAvg + VHL": {**common, "virtual": VIRTUAL}}
    configs = {name: model(**settings).model_dump(mode="json") for name, settings in arms.items()}
    return [
        Trial(
            name,
            seed,
            str(options.results / folder_of(name, seed)),
            "vhl",
            config,
            CLIENTS,
            {"cifar10": str(options.cifar10)},
        )
        for seed in options.seeds
        for name, config in configs.items()
    ]


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    cli = parser(__doc__)
    cli.add_argument("--cifar10", type=Path, required=True, metavar="DIR", help="CIFAR-10, in any of its formats")
    cli.add_argument("--results", type=Path, metavar="DIR", help="folder for runs")
    cli.add_argument("--seeds", type=lambda text: [int(s) for s in text.split(",")], default=[0, 1, 2])
    cli.add_argument("--rounds", type=int, default=100)
    cli.add_argument("--per-round", type=int, default=5, help="clients per round")
    cli.add_argument("--lr", type=float, default=0.05)
    options = cli.parse_args()
    if options.quick:
        options.seeds, options.rounds = options.seeds[:1], 1
    return options


def main() -> int:
    """Train and report."""
    options = parse_options()
    with ExitStack() as cleanup:
        if options.results is None:
            options.results = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="farshore-vhl-")))
        options.results, options.cifar10 = options.results.resolve(), options.cifar10.resolve()
        curves = run_trials(trials(options))
    found = {arm.name: arm for arm in compare(curves, "BN FedAvg")}
    return finish(
        "vhl_cifar10",
        options,
        scale=f"all of CIFAR-10, conv3, {CLIENTS} clients, {options.per_round} a round, LDA 0.1, "
        f"{options.rounds} rounds, lr {options.lr:g}, seeds {','.join(map(str, options.seeds))}",
        claim=CLAIM,
        figures={
            "arms": [arm.as_dict() for arm in found.values()],
            "gains": gains(curves, "BN FedAvg + VHL", "BN FedAvg"),
        },
        gates=[],
        tables=[table(found)],
    )


if __name__ == "__main__":
    sys.exit(main())
