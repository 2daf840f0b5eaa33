"""What a split costs in time: in one process, in two, and over a slow link.

(a) Split in one process against the unsplit model: the same batches, one compute thread for each program.
(b) Two processes, pipelined: server, run process, node and node process as a user starts them, TLS and relay included,
    one compute thread for each program, the model cut where its halves take about as long (the embeddings, half of
    all weights, are part of the front); against the unsplit model on one thread.
(c) The same over a link of 10 Mbit/s and 20 ms: bytes on the link against vanilla split learning, and the step's time
    against the longer of computing and sending.

Steps are timed by when they end, start-up, the first steps and the last (which evaluates and saves) left out. What is
compared runs in turns on the same batches; of repetitions of a step the fastest counts, since other processes only
ever slow a step down. The unsplit model is trained as anybody would train it, its embeddings' gradients included.

    python benchmarks/split_step.py --json split_step.json
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from _common import Gate, Table, finish, gate, parser

from farshore.algorithms.split_fine_tuning.builders import Builder
from farshore.algorithms.split_fine_tuning.config import SplitFineTuning
from farshore.algorithms.split_fine_tuning.unsplit import train_unsplit
from farshore.algorithms.split_fine_tuning.workload import WORKLOAD
from farshore.cli.follow import check_ended
from farshore.client.admin import AdminClient
from farshore.core.errors import DataError
from farshore.core.seeds import Seed
from farshore.demo.local_cluster import LocalCluster
from farshore.runs.directory import RunDirectory
from farshore.simulations.in_process import InProcessRun

CLAIM = (
    "goals: split in one process at most 1.05 x unsplit; two processes at least 1.3 x faster; "
    "96x codes at least 85x less time on the link"
)
SEED = 3
#: Steps at the start of a run that are not timed: memory is still being allocated.
WARM = 2
MBPS, LATENCY_MS = 10.0, 20.0
PLAIN, SHAPED = "plain", "shaped"
VANILLA = {"cut": "boundary", "up": "raw", "down": "raw"}
ENDED = ("finished", "failed", "cancelled", "interrupted")
#: Seconds per step, in the order of steps.
Times = list[float]


@dataclass(frozen=True)
class Setting:
    """What all runs share."""

    config: dict[str, Any]
    data: dict[str, Path]
    repeats: int
    folder: Path
    cpu: dict[str, list[Times]] = field(default_factory=lambda: {"split": [], "unsplit": []})

    def find(self, name: str) -> Path:
        """Path of a data set by name."""
        if name not in self.data:
            raise DataError(f"there is no data set called '{name}' here", hint=f"give --{name} DIR")
        return self.data[name]

    def made(self, **changes: Any) -> SplitFineTuning:
        """The configuration with some changes."""
        return SplitFineTuning(**{**self.config, **changes})


def differences(ends: Iterable[float]) -> Times:
    """Seconds of each timed step, from the moments at which all of a run's steps ended."""
    moments = list(ends)
    return [b - a for a, b in pairwise(moments)][WARM:-1]


def fastest(repetitions: Iterable[Times]) -> Times:
    """Of each step the fastest repetition."""
    return [min(times) for times in zip(*repetitions, strict=True)]


def ratio(ours: Times, theirs: Times) -> float:
    """Our time for all timed steps over theirs.

    Not step by step: a step counts as done when the cloud is, while the edge's backward pass still runs.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} steps against {len(theirs)}")
    return sum(ours) / sum(theirs)


# ---- (a) one process -------------------------------------------------------------------------------------------------


class Ends:
    """Notes the moments at which steps end, on the clock and in this process's CPU time."""

    def __init__(self) -> None:
        self._wall: list[float] = []
        self._cpu: list[float] = []

    def __call__(self, *_: object) -> None:
        self._wall.append(time.perf_counter())
        self._cpu.append(time.process_time())

    def times(self, cpu: list[Times]) -> Times:
        """Seconds of each step; those of the CPU are added to ``cpu``."""
        cpu.append(differences(self._cpu))
        return differences(self._wall)


def unsplit_times(setting: Setting) -> Times:
    """Train the unsplit model."""
    ends = Ends()
    train_unsplit(setting.made(), SEED, 1, setting.find, ends)
    return ends.times(setting.cpu["unsplit"])


def in_process_times(setting: Setting) -> Times:
    """Train split, both programs in this process."""
    ends = Ends()
    with tempfile.TemporaryDirectory(dir=setting.folder) as folder:
        InProcessRun(
            WORKLOAD,
            setting.made(),
            Path(folder),
            seed=SEED,
            data=setting.data,
            on_progress=ends,
        ).run()
    return ends.times(setting.cpu["split"])


# ---- (b), (c) processes ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """A run over processes: of its timed steps the seconds, and the frame bytes up and down."""

    times: Times
    up: list[int]
    down: list[int]

    @property
    def link_seconds(self) -> float:
        """Time that a step's frames take on the link, both ways, latency aside; mean over steps."""
        return (sum(self.up) + sum(self.down)) / len(self.up) * 8 / (MBPS * 1e6)

    @property
    def link_bounds(self) -> Times:
        """The least that each step can take on the link: the busier direction, and once there and back."""
        pairs = zip(self.up, self.down, strict=True)
        return [max(pair) * 8 / (MBPS * 1e6) + 2 * LATENCY_MS / 1e3 for pair in pairs]


class Machines:
    """A server and two nodes on this machine; the link of one of them is slow."""

    def __init__(self, setting: Setting, house: LocalCluster) -> None:
        self._setting, self._house = setting, house
        profile = setting.folder / "slow.yaml"
        profile.write_text(f"link: {{up_mbps: {MBPS}, down_mbps: {MBPS}, latency_ms: {LATENCY_MS}}}\n")
        data = [word for name, path in setting.data.items() for word in ("--data", f"{name}={path}")]
        house.start_server()
        house.start_nodes((PLAIN, SHAPED), {PLAIN: data, SHAPED: [*data, "--profile", str(profile)]})

    def run(self, node: str, **changes: Any) -> Measured:
        """Train with one edge on a node."""
        config = self._setting.made(**changes).model_dump()
        with AdminClient.local(self._house.server_home) as admin:
            data = {name: str(path) for name, path in self._setting.data.items()}
            run = admin.submit(WORKLOAD.name, config, nodes=[node], seed=SEED, data=data)
            for event in admin.follow(run.id):
                run = event.run
                if run.state in ENDED:
                    break
            check_ended(run)
        return measured(RunDirectory.open(Path(run.directory)))


def measured(directory: RunDirectory) -> Measured:
    """Times and frame bytes of the timed steps of a finished run."""
    ends = {m["step"]: m["time"] for m in directory.read_metrics() if "loss" in m}
    sums = {"activation": [0] * len(ends), "gradient": [0] * len(ends)}
    for row in directory.read_ledger().select(["kind", "step", "frame_bytes"]).to_pylist():
        if row["kind"] in sums:
            sums[row["kind"]][row["step"]] += row["frame_bytes"]
    # The first end has no beginning: times start with the second step.
    up, down = (sizes[1:][WARM:-1] for sizes in sums.values())
    return Measured(differences(ends[step] for step in sorted(ends)), up, down)


# ---- everything ------------------------------------------------------------------------------------------------------


def one_process(setting: Setting) -> tuple[dict[str, Any], list[Gate]]:
    """Part (a)."""
    split, whole = turns(setting.repeats, lambda: in_process_times(setting), lambda: unsplit_times(setting))
    found = ratio(split, whole)
    # CPU time does not see that the two programs overlap, nor what else the machine does.
    cpu = ratio(fastest(setting.cpu["split"]), fastest(setting.cpu["unsplit"]))
    figures = {"split_seconds": split, "unsplit_seconds": whole, "ratio": found, "ratio_of_CPU_time": cpu}
    return figures, [gate("split in one process : unsplit, step time", found, "<= 1.05", found <= 1.05)]


def two_processes(setting: Setting, machines: Machines) -> tuple[dict[str, Any], list[Gate]]:
    """Part (b)."""
    # Embeddings and their optimizer weigh about a block: both halves take as long at two thirds of MiniLM.
    balanced = round(2 * Builder(setting.made(), Seed(SEED), setting.find).layers / 3)
    split, whole = turns(
        setting.repeats,
        lambda: machines.run(PLAIN, block=balanced, micro_batches=4).times,
        lambda: unsplit_times(setting),
    )
    found = ratio(whole, split)
    figures = {"split_seconds": split, "unsplit_seconds": whole, "speed_up": found}
    holds = found >= 1.3 if len(os.sched_getaffinity(0)) >= 2 else None
    return figures, [gate("two processes, m=4: times faster than unsplit", found, ">= 1.3", holds)]


def slow_link(setting: Setting, machines: Machines) -> tuple[dict[str, Any], list[Gate]]:
    """Part (c)."""
    vanilla = machines.run(SHAPED, micro_batches=4, **VANILLA)
    runs: list[Measured] = []

    def shaped() -> Times:
        runs.append(machines.run(SHAPED, micro_batches=4))
        return runs[-1].times

    computing, times = turns(setting.repeats, lambda: machines.run(PLAIN, micro_batches=4).times, shaped)
    ours = runs[0]  # bytes are the same in every repetition
    less = vanilla.link_seconds / ours.link_seconds
    bounds = [max(pair) for pair in zip(computing, ours.link_bounds, strict=True)]
    near = ratio(times, bounds)
    # On a link that is not throttled vanilla split learning would take less time than its bytes allow.
    throttled = ratio(vanilla.times, vanilla.link_bounds) >= 1
    figures = {
        "vanilla_link_seconds": vanilla.link_seconds,
        "link_seconds": ours.link_seconds,
        "times_less": less,
        "computing_seconds": statistics.median(computing),
        "step_seconds": statistics.median(times),
        "step_over_bound": near,
        "vanilla_step_seconds": statistics.median(vanilla.times),
        "throttled": throttled,
    }
    return figures, [
        gate("10 Mbit/s: vanilla's time on the link : ours, 96x codes", less, ">= 85", less >= 85),
        gate("10 Mbit/s, 20 ms: step : max(compute, link)", near, "<= 1.15", near <= 1.15 if throttled else None),
    ]


def turns(repeats: int, *parts: Callable[[], Times]) -> list[Times]:
    """Run the parts in turns, forwards and backwards; of each step the fastest time per part."""
    found: list[list[Times]] = [[] for _ in parts]
    for repeat in range(repeats):
        order = list(enumerate(parts))
        for place, part in order if repeat % 2 == 0 else order[::-1]:
            found[place].append(part())
    return [fastest(times) for times in found]


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    made = parser(__doc__)
    made.add_argument("--parts", default="abc", help="which of (a), (b) and (c)")
    made.add_argument("--steps", type=int, default=16, help="steps of each run")
    made.add_argument("--repeats", type=int, default=3)
    made.add_argument("--task", default=None, help="default: docstrings, sst2 with --glue")
    made.add_argument("--glue", type=Path, metavar="DIR")
    made.add_argument("--model", type=Path, metavar="DIR", help="a transformers model (default: MiniLM)")
    options = made.parse_args(arguments)
    if options.quick:
        options.steps, options.repeats, options.parts = WARM + 3, 1, options.parts.replace("c", "")
    options.task = options.task or ("sst2" if options.glue else "docstrings")
    return options


def measure(options: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], list[Gate]]:
    """All parts that are wanted."""
    data = {name: path for name, path in (("glue", options.glue), ("model", options.model)) if path}
    config = {
        "task": options.task,
        "model": "model" if options.model else "minilm",
        "train_samples": 32 * options.steps,
        "eval_samples": 8,
        "steps": options.steps,
        "eval_every": 1 << 30,
        "checkpoint_every": 1 << 30,
        "threads": 1,
    }
    setting = Setting(config, data, options.repeats, folder)
    figures: dict[str, Any] = {}
    gates: list[Gate] = []
    if "a" in options.parts:
        figures["one process"], found = one_process(setting)
        gates += found
    if set("bc") & set(options.parts):
        with LocalCluster(folder) as house:
            machines = Machines(setting, house)
            if "b" in options.parts:
                figures["two processes"], found = two_processes(setting, machines)
                gates += found
            if "c" in options.parts:
                figures["slow link"], found = slow_link(setting, machines)
                gates += found
    if options.quick:
        gates = [gate(g.name, g.value, g.goal, None) for g in gates]
    return figures, gates


def tables(figures: dict[str, Any]) -> list[Table]:
    """The figures for people."""
    rows = []
    for part, found in figures.items():
        for name, value in found.items():
            if name == "throttled":
                continue
            number = statistics.median(value) if isinstance(value, list) else value
            rows.append([part, name.replace("_", " "), f"{number:.4g}"])
    return [Table("Time of a step (seconds: medians over steps)", ["part", "figure", "value"], rows)]


def main() -> int:
    """Measure, then tell."""
    options = options_of()
    with tempfile.TemporaryDirectory(prefix="farshore-step-") as folder:
        figures, gates = measure(options, Path(folder))
    scale = (
        f"{options.task}, batches of 32, {options.steps} steps a run, best of {options.repeats}, one thread a program"
    )
    return finish("split_step", options, scale=scale, claim=CLAIM, figures=figures, gates=gates, tables=tables(figures))


if __name__ == "__main__":
    sys.exit(main())
