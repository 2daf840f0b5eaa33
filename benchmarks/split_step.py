"""Time of a split training step: in one process, in two processes, and over a slow link.

(a) Split in one process against the unsplit model: the same batches, one compute thread per program.
(b) Two processes, pipelined: server, run process, node and node process as a user starts them, with TLS and relay, one
    compute thread per program, the model split so that both halves take about the same time (the front contains the
    embeddings, half of all weights); against the unsplit model on one thread.
(c) The same over a link of 10 Mbit/s and 20 ms: bytes on the link against vanilla split learning, and the step time
    against the maximum of computing and sending.

A step's time is the difference between the ends of successive steps, without start-up, the first steps and the last
(which evaluates and saves). Variants run in turns on the same batches; the fastest repetition of a step counts, since
other processes only slow it down. The unsplit model is trained in full, including the gradients of its embeddings.

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
#: Untimed warm-up steps at the start of a run.
WARM_UP_STEPS = 2
MBPS, LATENCY_MS = 10.0, 20.0
PLAIN, SHAPED = "plain", "shaped"
VANILLA = {"cut": "boundary", "up": "raw", "down": "raw"}
ENDED = ("finished", "failed", "cancelled", "interrupted")
#: Seconds per step, in the order of steps.
Times = list[float]


@dataclass(frozen=True)
class Setting:
    """Settings shared by all runs."""

    config: dict[str, Any]
    data: dict[str, Path]
    repeats: int
    folder: Path
    cpu: dict[str, list[Times]] = field(default_factory=lambda: {"split": [], "unsplit": []})

    def find(self, name: str) -> Path:
        """Path of a data set by name."""
        if name not in self.data:
            raise DataError(f"the data set '{name}' is not given", hint=f"give --{name} DIR")
        return self.data[name]

    def configuration(self, **changes: Any) -> SplitFineTuning:
        """Build the configuration with some changes."""
        return SplitFineTuning(**{**self.config, **changes})


def differences(ends: Iterable[float]) -> Times:
    """Compute the seconds of each timed step from the end times of all steps."""
    times = list(ends)
    return [b - a for a, b in pairwise(times)][WARM_UP_STEPS:-1]


def fastest(repetitions: Iterable[Times]) -> Times:
    """Minimum time of each step over repetitions."""
    return [min(times) for times in zip(*repetitions, strict=True)]


def ratio(ours: Times, theirs: Times) -> float:
    """Total time of all timed steps divided by that of another variant.

    Single steps are not compared: a step ends on the server while the edge's backward pass still runs.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} steps against {len(theirs)}")
    return sum(ours) / sum(theirs)


# ---- (a) one process -------------------------------------------------------------------------------------------------


class Ends:
    """Records wall time and this process's CPU time at the end of each step."""

    def __init__(self) -> None:
        self._wall: list[float] = []
        self._cpu: list[float] = []

    def __call__(self, *_: object) -> None:
        self._wall.append(time.perf_counter())
        self._cpu.append(time.process_time())

    def times(self, cpu: list[Times]) -> Times:
        """Wall seconds of each step; CPU seconds are appended to ``cpu``."""
        cpu.append(differences(self._cpu))
        return differences(self._wall)


def unsplit_times(setting: Setting) -> Times:
    """Train the unsplit model; returns its step times."""
    ends = Ends()
    train_unsplit(setting.configuration(), SEED, 1, setting.find, ends)
    return ends.times(setting.cpu["unsplit"])


def in_process_times(setting: Setting) -> Times:
    """Train split with both programs in this process; returns its step times."""
    ends = Ends()
    with tempfile.TemporaryDirectory(dir=setting.folder) as folder:
        InProcessRun(
            WORKLOAD,
            setting.configuration(),
            Path(folder),
            seed=SEED,
            data=setting.data,
            on_progress=ends,
        ).run()
    return ends.times(setting.cpu["split"])


# ---- (b), (c) processes ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """Timed steps of a run over processes: seconds, and frame bytes up and down."""

    times: Times
    up: list[int]
    down: list[int]

    @property
    def link_seconds(self) -> float:
        """Mean transfer time of a step's frames on the link, both ways, without latency."""
        return (sum(self.up) + sum(self.down)) / len(self.up) * 8 / (MBPS * 1e6)

    @property
    def link_bounds(self) -> Times:
        """Lower bound of each step's time on the link: the busier direction plus one round trip."""
        pairs = zip(self.up, self.down, strict=True)
        return [max(pair) * 8 / (MBPS * 1e6) + 2 * LATENCY_MS / 1e3 for pair in pairs]


class Machines:
    """A server and two nodes on this machine, one of them with a throttled link."""

    def __init__(self, setting: Setting, cluster: LocalCluster) -> None:
        self._setting, self._cluster = setting, cluster
        profile = setting.folder / "slow.yaml"
        profile.write_text(f"link: {{up_mbps: {MBPS}, down_mbps: {MBPS}, latency_ms: {LATENCY_MS}}}\n")
        data = [word for name, path in setting.data.items() for word in ("--data", f"{name}={path}")]
        cluster.start_server()
        cluster.start_nodes((PLAIN, SHAPED), {PLAIN: data, SHAPED: [*data, "--profile", str(profile)]})

    def run(self, node: str, **changes: Any) -> Measured:
        """Train with one edge on a node; returns its measurements."""
        config = self._setting.configuration(**changes).model_dump()
        with AdminClient.local(self._cluster.server_home) as admin:
            data = {name: str(path) for name, path in self._setting.data.items()}
            run = admin.submit(WORKLOAD.name, config, nodes=[node], seed=SEED, data=data)
            for event in admin.follow(run.id):
                run = event.run
                if run.state in ENDED:
                    break
            check_ended(run)
        return read_measurements(RunDirectory.open(Path(run.directory)))


def read_measurements(directory: RunDirectory) -> Measured:
    """Read times and frame bytes of the timed steps of a finished run."""
    ends = {m["step"]: m["time"] for m in directory.read_metrics() if "loss" in m}
    sums = {"activation": [0] * len(ends), "gradient": [0] * len(ends)}
    for row in directory.read_ledger().select(["kind", "step", "frame_bytes"]).to_pylist():
        if row["kind"] in sums:
            sums[row["kind"]][row["step"]] += row["frame_bytes"]
    # The first step has no start time: times begin with the second step.
    up, down = (sizes[1:][WARM_UP_STEPS:-1] for sizes in sums.values())
    return Measured(differences(ends[step] for step in sorted(ends)), up, down)


# ---- everything ------------------------------------------------------------------------------------------------------


def one_process(setting: Setting) -> tuple[dict[str, Any], list[Gate]]:
    """Measure part (a)."""
    split, unsplit = turns(setting.repeats, lambda: in_process_times(setting), lambda: unsplit_times(setting))
    found = ratio(split, unsplit)
    # CPU time is independent of overlap and of other processes.
    cpu = ratio(fastest(setting.cpu["split"]), fastest(setting.cpu["unsplit"]))
    results = {"split_seconds": split, "unsplit_seconds": unsplit, "ratio": found, "ratio_of_CPU_time": cpu}
    return results, [gate("step time, split in one process / unsplit", found, "<= 1.05", found <= 1.05)]


def two_processes(setting: Setting, machines: Machines) -> tuple[dict[str, Any], list[Gate]]:
    """Measure part (b)."""
    # Embeddings and their optimizer cost about a block; the halves balance at two thirds of MiniLM.
    balanced = round(2 * Builder(setting.configuration(), Seed(SEED), setting.find).layers / 3)
    split, unsplit = turns(
        setting.repeats,
        lambda: machines.run(PLAIN, block=balanced, micro_batches=4).times,
        lambda: unsplit_times(setting),
    )
    found = ratio(unsplit, split)
    results = {"split_seconds": split, "unsplit_seconds": unsplit, "speed_up": found}
    holds = found >= 1.3 if len(os.sched_getaffinity(0)) >= 2 else None
    return results, [gate("two processes, m=4: speed-up over unsplit", found, ">= 1.3", holds)]


def slow_link(setting: Setting, machines: Machines) -> tuple[dict[str, Any], list[Gate]]:
    """Measure part (c)."""
    vanilla = machines.run(SHAPED, micro_batches=4, **VANILLA)
    runs: list[Measured] = []

    def shaped() -> Times:
        runs.append(machines.run(SHAPED, micro_batches=4))
        return runs[-1].times

    computing, times = turns(setting.repeats, lambda: machines.run(PLAIN, micro_batches=4).times, shaped)
    ours = runs[0]  # bytes are equal in every repetition
    less = vanilla.link_seconds / ours.link_seconds
    bounds = [max(pair) for pair in zip(computing, ours.link_bounds, strict=True)]
    near = ratio(times, bounds)
    # On an unthrottled link vanilla split learning would be faster than its bytes allow.
    throttled = ratio(vanilla.times, vanilla.link_bounds) >= 1
    results = {
        "vanilla_link_seconds": vanilla.link_seconds,
        "link_seconds": ours.link_seconds,
        "times_less": less,
        "computing_seconds": statistics.median(computing),
        "step_seconds": statistics.median(times),
        "step_over_bound": near,
        "vanilla_step_seconds": statistics.median(vanilla.times),
        "throttled": throttled,
    }
    return results, [
        gate("10 Mbit/s: link time, vanilla / 96x codes", less, ">= 85", less >= 85),
        gate("10 Mbit/s, 20 ms: step time / max(compute, link)", near, "<= 1.15", near <= 1.15 if throttled else None),
    ]


def turns(repeats: int, *parts: Callable[[], Times]) -> list[Times]:
    """Run the parts in turns, in alternating order; returns the fastest time of each step per part."""
    found: list[list[Times]] = [[] for _ in parts]
    for repeat in range(repeats):
        order = list(enumerate(parts))
        for index, part in order if repeat % 2 == 0 else order[::-1]:
            found[index].append(part())
    return [fastest(times) for times in found]


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    cli = parser(__doc__)
    cli.add_argument("--parts", default="abc", help="which of (a), (b) and (c)")
    cli.add_argument("--steps", type=int, default=16, help="steps of each run")
    cli.add_argument("--repeats", type=int, default=3)
    cli.add_argument("--task", default=None, help="default: docstrings, sst2 with --glue")
    cli.add_argument("--glue", type=Path, metavar="DIR")
    cli.add_argument("--model", type=Path, metavar="DIR", help="a transformers model (default: MiniLM)")
    options = cli.parse_args(arguments)
    if options.quick:
        options.steps, options.repeats, options.parts = WARM_UP_STEPS + 3, 1, options.parts.replace("c", "")
    options.task = options.task or ("sst2" if options.glue else "docstrings")
    return options


def measure(options: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], list[Gate]]:
    """Measure the selected parts."""
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
    results: dict[str, Any] = {}
    gates: list[Gate] = []
    if "a" in options.parts:
        results["one process"], found = one_process(setting)
        gates += found
    if set("bc") & set(options.parts):
        with LocalCluster(folder) as cluster:
            machines = Machines(setting, cluster)
            if "b" in options.parts:
                results["two processes"], found = two_processes(setting, machines)
                gates += found
            if "c" in options.parts:
                results["slow link"], found = slow_link(setting, machines)
                gates += found
    if options.quick:
        gates = [gate(g.name, g.value, g.goal, None) for g in gates]
    return results, gates


def tables(results: dict[str, Any]) -> list[Table]:
    """Table of the results."""
    rows = []
    for part, found in results.items():
        for name, value in found.items():
            if name == "throttled":
                continue
            number = statistics.median(value) if isinstance(value, list) else value
            rows.append([part, name.replace("_", " "), f"{number:.4g}"])
    return [Table("Time of a step (seconds: medians over steps)", ["part", "measurement", "value"], rows)]


def main() -> int:
    """Measure and report."""
    options = parse_options()
    with tempfile.TemporaryDirectory(prefix="farshore-step-") as folder:
        results, gates = measure(options, Path(folder))
    scale = (
        f"{options.task}, batches of 32, {options.steps} steps a run, best of {options.repeats}, one thread per program"
    )
    return finish("split_step", options, scale=scale, claim=CLAIM, figures=results, gates=gates, tables=tables(results))


if __name__ == "__main__":
    sys.exit(main())
