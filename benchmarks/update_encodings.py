"""What update encodings save and what they cost: accuracy, bytes and CPU time of federated rounds.

Every encoding of updates on the digits demonstration (ten unlike clients, five a round), on paired seeds: a seed sets
partition, first weights and cohorts, so differences to `raw` are taken seed by seed. Bytes are the ledger's. CPU time
is that of one update's two ends, beside zlib and a copy of the same bytes. Finished runs are kept in --results, a
killed one goes on from its checkpoint.

    python benchmarks/update_encodings.py --results encodings --seeds 0,1,2 --json update_encodings.json
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from _common import Gate, Table, finish, gate, parser
from _trials import train
from encoding_cost import LARGE, Cost, costs, update_bytes
from encoding_cost import table as cost_table

from farshore.core.workloads import load
from farshore.engines.federated.config import Uplink
from farshore.reports.account import ONCE, Account
from farshore.reports.arms import Arm, compare
from farshore.reports.curves import Curve, read_curve
from farshore.runs.directory import RunDirectory
from farshore.simulations.trial import Trial, folder_of

CLAIM = (
    "fp16 costs nothing, int8 next to nothing, top-k of 1 % little once what is lost is fed back (Karimireddy 2019); "
    "goals set before measuring"
)
UPLINKS: dict[str, Uplink] = {
    "raw": Uplink(),
    "fp16": Uplink(encoding="fp16"),
    "bf16": Uplink(encoding="bf16"),
    "int8": Uplink(encoding="int8"),
    "int4": Uplink(encoding="int4"),
    "topk 10 %": Uplink(encoding="topk", fraction=0.1),
    "topk 1 %": Uplink(encoding="topk", fraction=0.01),
    "topk 1 %, no feedback": Uplink(encoding="topk", fraction=0.01, error_feedback=False),
    "lowrank 4": Uplink(encoding="lowrank", rank=4),
}
#: Both directions encoded: what comes down cannot be a difference, so it has fewer encodings.
BOTH = "int8, down int8"
#: A control: raw updates, the learning rate larger by a float32's last bits. What it is apart from `raw` shows how far
#: these runs go apart by chance alone. Added after the first measurement, in which fp16 had missed its goal.
CONTROL = "raw, lr + 3e-7"
_NUDGE = 1 + 3e-7
METHODS: dict[str, dict[str, Any]] = {
    "FedAvg": {"method": "fedavg", "lr": 0.3, "virtual": {"enabled": False}},
    "FedAvg + VHL": {"method": "fedavg", "lr": 0.3},
    "SCAFFOLD": {"method": "scaffold", "lr": 0.1, "virtual": {"enabled": False}},
}
CLIENTS = 10


@dataclass(frozen=True)
class Volume:
    """Bytes of a whole run's messages, the channels' own left out; means over seeds.

    Attributes
    ----------
    updates : float
        Messages that came up.
    rounds : float
    dense, payload, frame : dict
        By direction, ``up`` and ``down``.
    """

    updates: float
    rounds: float
    dense: dict[str, float]
    payload: dict[str, float]
    frame: dict[str, float]


def arms(methods: list[str]) -> dict[str, dict[str, Any]]:
    """Name -> settings: every method with every encoding of updates, with int8 both ways, and the control."""
    found = {}
    for method in methods:
        for name, uplink in UPLINKS.items():
            found[f"{method}, {name}"] = {**METHODS[method], "uplink": uplink}
        found[f"{method}, {BOTH}"] = {**METHODS[method], "uplink": "int8", "downlink": "int8"}
        found[f"{method}, {CONTROL}"] = {**METHODS[method], "lr": METHODS[method]["lr"] * _NUDGE}
    return found


def trials(options: argparse.Namespace) -> list[Trial]:
    """Every arm with every seed, seeds outermost."""
    model = load("vhl").config
    rounds = {"rounds": 2, "per_round": 2} if options.quick else {}
    configs = {
        name: model(**settings, **rounds).model_dump(mode="json") for name, settings in arms(options.methods).items()
    }
    return [
        Trial(name, seed, str(options.results / folder_of(name, seed)), "vhl", config, CLIENTS, {})
        for seed in options.seeds
        for name, config in configs.items()
    ]


def trained(options: argparse.Namespace) -> list[Trial]:
    """Train what has not finished."""
    wanted = trials(options)
    train(wanted)
    return wanted


def read(ran: list[Trial]) -> tuple[dict[str, dict[int, Curve]], dict[str, Volume]]:
    """Arm -> seed -> curve, and arm -> volume."""
    curves: dict[str, dict[int, Curve]] = {}
    ledgers: dict[str, list[dict[str, Any]]] = {}
    for trial in ran:
        run = RunDirectory(Path(trial.directory))
        curves.setdefault(trial.arm, {})[trial.seed] = read_curve(run, "acc")
        # A message that was sent again after a restart counts once, as in a run that nothing restarts.
        ledgers.setdefault(trial.arm, []).extend(Account.read(run.path).by("direction", "kind", parts=[ONCE]))
    return curves, {arm: volume(rows, len(curves[arm]), trial_rounds(ran, arm)) for arm, rows in ledgers.items()}


def trial_rounds(ran: list[Trial], arm: str) -> int:
    """Rounds of an arm's runs."""
    return next(int(trial.config["rounds"]) for trial in ran if trial.arm == arm)


def volume(rows: list[dict[str, Any]], seeds: int, rounds: int) -> Volume:
    """Sum up rows of the ledgers of ``seeds`` runs."""

    def sums(size: str) -> dict[str, float]:
        return {way: sum(r[size] for r in rows if r["direction"] == way) / seeds for way in ("up", "down")}

    updates = sum(r["frames"] for r in rows if r["kind"] == "update") / seeds
    return Volume(updates, rounds, sums("dense_bytes"), sums("payload_bytes"), sums("frame_bytes"))


def differences(curves: Mapping[str, Mapping[int, Curve]], arm: str, base: str) -> dict[str, list[float]]:
    """Points that an arm has over its base, seed by seed: of the best round and of the last ten."""
    pairs = [(curves[arm][seed], curves[base][seed]) for seed in curves[arm]]
    best = [100 * (a.best - b.best) for a, b in pairs]
    return {"best": best, "last10": [100 * (a.last() - b.last()) for a, b in pairs]}


def compression(volumes: Mapping[str, Volume], arm: str) -> dict[str, float]:
    """Dense bytes of uncompressed FedAvg over an arm's payload bytes: upwards, and both ways (VHL's spec, 8.1)."""
    dense, payload = volumes["FedAvg, raw"].dense, volumes[arm].payload
    return {"up": dense["up"] / payload["up"], "both": sum(dense.values()) / sum(payload.values())}


def size_errors(volumes: Mapping[str, Volume]) -> dict[str, float]:
    """Measured payload of FedAvg's updates minus what the size functions say beforehand, in bytes of a whole run."""
    return {
        name: volumes[f"FedAvg, {name}"].payload["up"] - volumes[f"FedAvg, {name}"].updates * update_bytes(uplink)
        for name, uplink in UPLINKS.items()
    }


def gates(
    curves: Mapping[str, Mapping[int, Curve]], volumes: Mapping[str, Volume], cost: list[Cost], judged: bool
) -> list[Gate]:
    """The goals; accuracy is that of the last ten rounds, as a mean over at least three seeds."""

    def mean(arm: str, base: str) -> float:
        return fmean(differences(curves, f"FedAvg, {arm}", f"FedAvg, {base}")["last10"])

    def judge(name: str, value: float, goal: str, holds: bool) -> Gate:
        return gate(name, value, goal, holds if judged else None)

    half, byte = mean("fp16", "raw"), mean("int8", "raw")
    fed_back = mean("topk 1 %", "topk 1 %, no feedback")
    wrong = max(map(abs, size_errors(volumes).values()))
    times = {name: compression(volumes, f"FedAvg, {name}")["up"] for name in ("int8", "topk 1 %")}
    slowest = max(c.of_zlib for c in cost if c.state.startswith(LARGE) and c.name in ("fp16", "bf16", "int8", "int4"))
    return [
        judge("fp16 - raw, last10, points", half, ">= -0.2", half >= -0.2),
        judge("int8 - raw, last10, points", byte, ">= -0.5", byte >= -0.5),
        judge("topk 1 % with - without error feedback, last10, points", fed_back, "> 0", fed_back > 0),
        gate("largest difference of an arm's bytes to the size functions", wrong, "= 0", wrong == 0),
        judge("int8: times fewer bytes up", times["int8"], ">= 3.5", times["int8"] >= 3.5),
        judge("topk 1 %: times fewer bytes up", times["topk 1 %"], ">= 25", times["topk 1 %"] >= 25),
        judge("slowest of fp16, bf16, int8, int4: CPU time of both ends, of zlib's", slowest, "<= 1", slowest <= 1),
    ]


def accuracy_table(found: Mapping[str, Arm], curves: Mapping[str, Mapping[int, Curve]]) -> Table:
    """A row per arm."""
    columns = ["method, uplink", "best, %", "last 10, %", "last 10 - raw, points ± s.e.", "rounds to raw's best"]
    rows = []
    for name, arm in found.items():
        base = f"{name.partition(', ')[0]}, raw"
        apart = error_of(differences(curves, name, base)["last10"]) if name != base else "–"
        rows.append([name, _spread(arm.best), _spread(arm.last10), apart, _rounds(arm)])
    return Table("Accuracy with encoded updates", columns, rows)


def volume_table(found: Mapping[str, Arm], volumes: Mapping[str, Volume]) -> Table:
    """A row per arm."""
    columns = ["method, uplink", "payload up / down, kB a round", "frames up / down, kB a round"]
    columns += ["times fewer up", "times fewer in all", "MB to raw's best"]
    return Table("Bytes with encoded updates", columns, list(_volume_rows(found, volumes)))


def _volume_rows(found: Mapping[str, Arm], volumes: Mapping[str, Volume]) -> Iterator[list[str]]:
    for name, arm in found.items():
        told, times = volumes[name], compression(volumes, name)
        a_round = [
            " / ".join(f"{sizes[way] / told.rounds / 1e3:.1f}" for way in ("up", "down"))
            for sizes in (told.payload, told.frame)
        ]
        until = "–" if arm.payload_to is None else f"{arm.payload_to / 1e6:.1f}"
        yield [name, *a_round, f"{times['up']:.1f}", f"{times['both']:.2f}", until]


def error_of(by_seed: Sequence[float]) -> str:
    """Mean and standard error of paired differences, which is what tells them from chance."""
    error = f" ± {stdev(by_seed) / len(by_seed) ** 0.5:.1f}" if len(by_seed) > 1 else ""
    return f"{fmean(by_seed):+.1f}{error}"


def _spread(value: Any) -> str:
    sd = "" if value.sd is None else f" ± {100 * value.sd:.1f}"
    return f"{100 * value.mean:.1f}{sd}"


def _rounds(arm: Arm) -> str:
    return "none" if arm.rounds_to is None else f"{arm.rounds_to:g} ({arm.reached}/{arm.seeds})"


def compared(curves: Mapping[str, Mapping[int, Curve]]) -> dict[str, Arm]:
    """Every arm's figures, its targets being those of its method with raw updates."""
    found: dict[str, Arm] = {}
    for method in dict.fromkeys(name.partition(", ")[0] for name in curves):
        own = {name: by_seed for name, by_seed in curves.items() if name.partition(", ")[0] == method}
        found |= {arm.name: arm for arm in compare(own, f"{method}, raw")}
    return found


def _methods(text: str) -> list[str]:
    names = {name.lower().replace(" ", ""): name for name in METHODS}
    wanted = [names[word] for word in text.split(",") if word in names]
    if "FedAvg" not in wanted or len(wanted) != len(text.split(",")):
        raise argparse.ArgumentTypeError(f"name fedavg, and of {', '.join(names)} what else is wanted")
    return wanted


def main() -> int:
    """Train, measure, tell."""
    made = parser(__doc__)
    made.add_argument("--results", type=Path, metavar="DIR", help="runs are kept here")
    made.add_argument("--seeds", type=lambda text: [int(s) for s in text.split(",")], default=[0, 1, 2])
    made.add_argument("--methods", type=_methods, default=["FedAvg"], help="fedavg,fedavg+vhl,scaffold")
    options = made.parse_args()
    if options.quick:
        options.seeds = options.seeds[:1]
    with ExitStack() as cleanup:
        if options.results is None:
            options.results = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="farshore-encodings-")))
        options.results = options.results.resolve()
        curves, volumes = read(trained(options))
    cost = costs(UPLINKS, repeats=3 if options.quick else 15)
    found = compared(curves)
    return finish(
        "update_encodings",
        options,
        scale=f"digits, {CLIENTS} clients, LDA 0.05, batch norm, seeds {','.join(map(str, options.seeds))}; "
        "one thread; medians of CPU time",
        claim=CLAIM,
        figures={
            "arms": [arm.as_dict() for arm in found.values()],
            "differences": {n: differences(curves, n, f"{n.partition(', ')[0]}, raw") for n in curves},
            "volumes": {name: {**asdict(v), "compression": compression(volumes, name)} for name, v in volumes.items()},
            "size_errors": size_errors(volumes),
            "cost": [asdict(c) for c in cost],
        },
        gates=gates(curves, volumes, cost, judged=len(options.seeds) >= 3 and not options.quick),
        tables=[accuracy_table(found, curves), volume_table(found, volumes), cost_table(cost)],
    )


if __name__ == "__main__":
    sys.exit(main())
