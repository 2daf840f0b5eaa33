"""Effect of virtual data on federated learning with heterogeneous clients: accuracy, and rounds and bytes to a target.

Four base methods, each alone and with VHL, on scikit-learn's digits divided unevenly among ten clients, with batch norm
and with group norm, on paired seeds (a seed determines partition, initial weights, virtual data and cohorts). A control
uses virtual images with shuffled labels. Targets are FedAvg's best of the same seed and norm, rounded down. Finished
runs are stored in --results; an interrupted one resumes from its checkpoint.

    python benchmarks/vhl_accuracy.py --results vhl --seeds 0,1,2,3,4 --json vhl.json
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from _common import Gate, Table, finish, gate, parser
from _trials import run_trials

from farshore.core.workloads import load
from farshore.reports.arms import Arm, compare
from farshore.reports.curves import Curve
from farshore.simulations.trial import Trial, folder_of

CLAIM = "far better convergence and accuracy on heterogeneous clients (the paper's abstract; CIFAR-10, ResNet-18, GPU)"
METHODS = {"fedavg": "FedAvg", "fedprox": "FedProx", "scaffold": "SCAFFOLD", "fednova": "FedNova"}
#: Learning rates by norm and method, alone and with VHL, tuned on other seeds.
RATES = {
    "batch": {"fedavg": (0.3, 0.3), "fedprox": (0.3, 0.3), "scaffold": (0.1, 0.1), "fednova": (0.3, 0.3)},
    "group": {"fedavg": (0.3, 0.3), "fedprox": (0.3, 0.1), "scaffold": (0.1, 0.1), "fednova": (0.3, 0.1)},
}
NORMS = {"batch": "BN", "group": "GN"}
SHUFFLED = "BN FedAvg + VHL, labels shuffled"
CLIENTS = 10


def arms() -> dict[str, dict[str, Any]]:
    """Arm -> settings."""
    found: dict[str, dict[str, Any]] = {}
    for norm, by_method in RATES.items():
        for method, (alone, with_virtual) in by_method.items():
            name = f"{NORMS[norm]} {METHODS[method]}"
            common = {"method": method, "norm": norm}
            found[name] = {**common, "lr": alone, "virtual": {"enabled": False}}
            found[f"{name} + VHL"] = {**common, "lr": with_virtual}
    found[SHUFFLED] = {"method": "fedavg", "norm": "batch", "lr": 0.3, "virtual": {"shuffle_labels": True}}
    return found


def trials(options: argparse.Namespace) -> list[Trial]:
    """Build a trial per arm and seed, ordered by seed."""
    model = load("vhl").config
    rounds = {"rounds": 2, "per_round": 2} if options.quick else {}
    configs = {name: model(**settings, **rounds).model_dump(mode="json") for name, settings in arms().items()}
    return [
        Trial(name, seed, str(options.results / folder_of(name, seed)), "vhl", config, CLIENTS, {})
        for seed in options.seeds
        for name, config in configs.items()
    ]


def compared(curves: Mapping[str, Mapping[int, Curve]]) -> dict[str, Arm]:
    """Compare every arm with FedAvg of the same norm, which sets the target."""
    found: dict[str, Arm] = {}
    for short in NORMS.values():
        own = {name: by_seed for name, by_seed in curves.items() if name.startswith(short)}
        found |= {arm.name: arm for arm in compare(own, f"{short} FedAvg")}
    return found


def gains(curves: Mapping[str, Mapping[int, Curve]], arm: str, base: str) -> dict[str, list[float]]:
    """Differences of an arm to its base in points, seed by seed: of the best round and of the last ten."""
    pairs = [(curves[arm][seed], curves[base][seed]) for seed in curves[arm]]
    best = [100 * (a.best - b.best) for a, b in pairs]
    return {"best": best, "last10": [100 * (a.last() - b.last()) for a, b in pairs]}


def gates(curves: Mapping[str, Mapping[int, Curve]], found: Mapping[str, Arm], judged: bool) -> list[Gate]:
    """Gates, with batch norm and averaged over at least three seeds."""

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    def judge(name: str, value: float | None, goal: str, holds: bool) -> Gate:
        return gate(name, value, goal, holds if judged else None)

    base, arm = found["BN FedAvg"], found["BN FedAvg + VHL"]
    gain = gains(curves, "BN FedAvg + VHL", "BN FedAvg")
    control = mean(gains(curves, SHUFFLED, "BN FedAvg")["last10"])
    last10, best = mean(gain["last10"]), mean(gain["best"])
    worst_scaffold = min(100 * curve.best for curve in curves["BN SCAFFOLD + VHL"].values())
    rounds = arm.rounds_to / base.rounds_to if arm.rounds_to and base.rounds_to else None
    volume = arm.payload_to / base.payload_to if arm.payload_to and base.payload_to else None
    return [
        judge("FedAvg + VHL - FedAvg, last10, points", last10, ">= 4", last10 >= 4),
        judge("FedAvg + VHL - FedAvg, best, points", best, ">= 2", best >= 2),
        judge("rounds to FedAvg's best / FedAvg's rounds", rounds, "< 1", rounds is not None and rounds < 1),
        judge("bytes to FedAvg's best / FedAvg's bytes", volume, "< 1", volume is not None and volume < 1),
        judge("SCAFFOLD + VHL, lowest best, %", worst_scaffold, ">= 97.5", worst_scaffold >= 97.5),
        judge("gain with shuffled virtual labels, last10, points", control, "<= 1", control <= 1),
    ]


def table(found: Mapping[str, Arm]) -> Table:
    """Table with a row per method: alone → with VHL."""
    columns = ["norm and method", "seeds", "best, %", "last 10, %", "rounds to FedAvg's best", "MB to FedAvg's best"]
    return Table("Federated learning, without → with virtual data", columns, list(_rows(found)))


def _rows(found: Mapping[str, Arm]) -> Iterator[list[str]]:
    for name, arm in found.items():
        if "+ VHL" in name and name != SHUFFLED:
            continue
        both = [arm] + ([found[f"{name} + VHL"]] if f"{name} + VHL" in found else [])
        cells = [[_spread(a.best) for a in both], [_spread(a.last10) for a in both], [_rounds(a) for a in both]]
        cells.append(["–" if a.payload_to is None else f"{a.payload_to / 1e6:.1f}" for a in both])
        yield [name, str(arm.seeds), *(" → ".join(cell) for cell in cells)]


def _spread(value: Any) -> str:
    sd = "" if value.sd is None else f" ± {100 * value.sd:.1f}"
    return f"{100 * value.mean:.1f}{sd}"


def _rounds(arm: Arm) -> str:
    return "none" if arm.rounds_to is None else f"{arm.rounds_to:g} ({arm.reached}/{arm.seeds})"


def main() -> int:
    """Train and report."""
    cli = parser(__doc__)
    cli.add_argument("--results", type=Path, metavar="DIR", help="folder for runs")
    cli.add_argument("--seeds", type=lambda text: [int(s) for s in text.split(",")], default=[0, 1, 2])
    options = cli.parse_args()
    if options.quick:
        options.seeds = options.seeds[:1]
    with ExitStack() as cleanup:
        if options.results is None:
            options.results = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="farshore-vhl-")))
        options.results = options.results.resolve()
        curves = run_trials(trials(options))
    found = compared(curves)
    return finish(
        "vhl_accuracy",
        options,
        scale=f"digits, {CLIENTS} clients, LDA 0.05, seeds {','.join(map(str, options.seeds))}",
        claim=CLAIM,
        figures={
            "arms": [arm.as_dict() for arm in found.values()],
            "gains": {f"{n} + VHL": gains(curves, f"{n} + VHL", n) for n in curves if f"{n} + VHL" in curves},
        },
        gates=gates(curves, found, judged=len(options.seeds) >= 3 and not options.quick),
        tables=[table(found)],
    )


if __name__ == "__main__":
    sys.exit(main())
