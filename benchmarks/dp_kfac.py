"""Communication, state and CPU time of a K-FAC step by scheme, on four gloo ranks in a network namespace; medians.

The baselines are the modes of kfac-pytorch 0.4.2 (KAISA), reimplemented on the same code, so that only communication
and placement differ; the package itself is measured too if installed. With ``--megabits`` all ranks share a link of
that rate, and the time that a step spends on it is measured.

    python benchmarks/dp_kfac.py --json dp_kfac.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from _common import Gate, Table, finish, gate, parser
from dp_kfac_ranks import schemes

CLAIM = (
    "against the best earlier distributed K-FAC: communication 2.79-3.15x, computing 1.55-1.65x, memory 1.14-1.47x less"
)
MODELS = {"mlp": "perceptron 784-512-512-512-10, batch 32", "resnet20": "ResNet-20, batch 8"}


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    cli = parser(__doc__)
    cli.add_argument("--rounds", type=int, default=5, help="turns of each scheme")
    cli.add_argument("--steps", type=int, default=5, help="steps per turn")
    cli.add_argument("--models", default="mlp,resnet20")
    cli.add_argument("--intervals", default="1,10", help="steps between updates of factors and inverses")
    cli.add_argument("--megabits", type=float, default=0, help="rate of the shared link, Mbit/s; 0: unlimited")
    options = cli.parse_args()
    if options.quick:
        options.rounds, options.steps, options.models, options.intervals = 1, 1, "mlp", "1"
    return options


def run(options: argparse.Namespace, megabits: float = 0) -> dict[str, dict[str, Any]]:
    """Start the ranks; returns measurements by ``model/interval/scheme``, aggregated over ranks."""
    settings = {
        "models": options.models.split(","),
        "intervals": [int(part) for part in options.intervals.split(",")],
        "rounds": options.rounds,
        "steps": options.steps,
        "megabits": megabits,
    }
    script = Path(__file__).with_name("dp_kfac_ranks.py")
    done = subprocess.run([sys.executable, str(script), json.dumps(settings)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr.strip().splitlines()[-1] if done.stderr else "the ranks failed")
    ranks = json.loads(done.stdout.splitlines()[-1])
    return {
        key: {
            "bytes": ranks[0][key]["bytes"],
            "cpu": sum(rank[key]["cpu"] for rank in ranks),
            "seconds": max(rank[key]["seconds"] for rank in ranks),
            "state": max(rank[key]["state"] for rank in ranks),
        }
        for key in ranks[0]
    }


def table(found: dict[str, dict[str, Any]], model: str, interval: str) -> Table:
    """Table of all schemes for one model and interval."""
    base = found[f"{model}/{interval}/DP owner"]
    rows = []
    for name in schemes():
        own = found[f"{model}/{interval}/{name}"]
        rows.append(
            [
                name,
                f"{own['bytes'] / 1e6:.2f}",
                f"{own['bytes'] / base['bytes']:.2f}",
                f"{own['state'] / 1e6:.2f}" if own["state"] else "–",
                f"{own['cpu']:.2f}",
                f"{own['seconds']:.2f}",
            ]
        )
    columns = ["scheme", "MB a step, all ranks", "/ DP owner", "state MB, largest rank", "CPU s, all ranks", "seconds"]
    return Table(_title(model, interval), columns, rows)


def link_table(
    free: dict[str, dict[str, Any]], limited: dict[str, dict[str, Any]], model: str, interval: str, megabits: float
) -> Table:
    """Table of the time that the link adds to a step: communication not hidden by computing."""
    added = {
        name: limited[key]["seconds"] - free[key]["seconds"]
        for name in schemes()
        for key in [f"{model}/{interval}/{name}"]
    }
    rows = []
    for name in schemes():
        at = limited[f"{model}/{interval}/{name}"]["seconds"]
        rows.append([name, f"{at:.2f}", f"{added[name]:.2f}", f"{added[name] / added['DP owner']:.2f}"])
    title = f"{_title(model, interval)}, all ranks on a link of {megabits:g} Mbit/s"
    return Table(title, ["scheme", "seconds a step", "added by the link", "/ DP owner"], rows)


def _title(model: str, interval: str) -> str:
    return f"{MODELS[model]}, factors and inverses every {interval} step{'s' * (interval != '1')}"


def gates(found: dict[str, dict[str, Any]], judged: bool) -> list[Gate]:
    """Gates on ratios at an interval of 1."""
    judged_gates = []

    def ratio(model: str, what: str, first: str, second: str) -> float | None:
        one, other = (found.get(f"{model}/1/{name}") for name in (first, second))
        return one[what] / other[what] if one and other else None

    same = ratio("mlp", "bytes", "DP owner", "SGD")
    judged_gates.append(gate("bytes, DP owner / SGD, MLP", same, "1 ± 0.01", judged and abs((same or 0) - 1) <= 0.01))
    resnet = ratio("resnet20", "bytes", "DP owner", "SGD")
    judged_gates.append(
        gate("bytes, DP owner / SGD, ResNet-20", resnet, "1 ± 0.01", judged and abs((resnet or 0) - 1) <= 0.01)
    )
    for name, model, what, first, least in (
        ("bytes, MEM-OPT / DP owner, MLP", "mlp", "bytes", "MEM-OPT", 3.5),
        ("bytes, MEM-OPT / DP owner, ResNet-20", "resnet20", "bytes", "MEM-OPT", 8.0),
        ("bytes, MEM-OPT symmetric / DP owner, MLP", "mlp", "bytes", "MEM-OPT symmetric", 2.4),
        ("state, MEM-OPT / DP owner, MLP", "mlp", "state", "MEM-OPT", 1.5),
        ("state, MEM-OPT / DP owner, ResNet-20", "resnet20", "state", "MEM-OPT", 1.5),
        ("CPU, MEM-OPT / DP owner, ResNet-20", "resnet20", "cpu", "MEM-OPT", 1.2),
    ):
        value = ratio(model, what, first, "DP owner")
        judged_gates.append(gate(name, value, f">= {least}", value is not None and value >= least if judged else None))
    return [g if judged and g.value is not None else Gate(g.name, g.value, g.goal, None) for g in judged_gates]


def main() -> int:
    """Measure and report."""
    options = parse_options()
    found = run(options)
    figures: dict[str, Any] = {"steps": found}
    tables = [table(found, m, i) for m in options.models.split(",") for i in options.intervals.split(",")]
    if options.megabits:
        limited = run(options, options.megabits)
        figures["limited"] = {"megabits": options.megabits, "steps": limited}
        for model in options.models.split(","):
            tables += [link_table(found, limited, model, i, options.megabits) for i in options.intervals.split(",")]
    return finish(
        "dp_kfac",
        options,
        scale=f"4 processes, 1 thread each; {options.rounds} turns of {options.steps} steps, interleaved, medians",
        claim=CLAIM,
        figures=figures,
        gates=gates(found, not options.quick),
        tables=tables,
    )


if __name__ == "__main__":
    sys.exit(main())
