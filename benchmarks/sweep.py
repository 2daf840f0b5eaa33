"""Time of a sweep on 1, 2 and 4 nodes of one thread each, and what the queue costs per item.

The items train a small network on one thread. Each sweep runs on a real server with real nodes on this machine, and its
time is that of the run from its start to its end, with the start of the worker processes. The cost of the queue is
measured with items that do nothing: wall time per item on one node, less the time of the item itself, as the node
measures it. joblib, if it is installed, does the same work with as many processes.

    python benchmarks/sweep.py --json sweep.json
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from _common import Gate, Table, finish, gate, parser
from _sweep_item import run_item

from farshore.client.admin import AdminClient
from farshore.core.errors import RunFailedError
from farshore.core.nodes import RoleCount, RoleRequest
from farshore.core.workloads import load
from farshore.demo.local_cluster import LocalCluster
from farshore.runs.directory import RunDirectory
from farshore.simulations.experiment import cores
from farshore.simulations.sweeps.alone import thread_environment

CLAIM = "time divided by at least 0.9 x nodes, up to the cores there are; at most 5 ms of the queue per item"
GOAL_SHARE, GOAL_MS = 0.9, 5.0
METHOD = "data_parallel"
ENDED = ("finished", "failed", "cancelled", "interrupted")


def settings(steps: int) -> dict[str, Any]:
    """The training of an item."""
    return {"model": "mlp", "train_samples": 640, "batch": 64, "steps": steps, "log_every": steps, "device": "cpu"}


class Sweeps:
    """Runs sweeps on the nodes of a cluster.

    Parameters
    ----------
    admin : AdminClient
    """

    def __init__(self, admin: AdminClient) -> None:
        self._admin = admin

    def run(self, config: Mapping[str, Any], nodes: Sequence[str]) -> tuple[float, RunDirectory]:
        """Run a sweep on these nodes; returns its seconds and its directory."""
        values = load("sweep").config.model_validate(config).model_dump(mode="json")
        role = RoleRequest("", RoleCount(len(nodes), len(nodes)), tuple(nodes))
        run = self._admin.submit("sweep", values, roles=(role,), seed=0)
        for event in self._admin.follow(run.id):
            if event.run.state in ENDED:
                break
        ended = self._admin.run(run.id)
        if ended.state != "finished":
            raise RunFailedError(f"the sweep {ended.state}: {ended.reason}")
        return ended.ended - ended.started, RunDirectory(Path(ended.directory))


def queue_cost(run: RunDirectory) -> float:
    """Milliseconds of the queue per item: between the first result and the last, less the items' own time."""
    lines = list(run.read_metrics())
    wall = lines[-1]["time"] - lines[0]["time"]
    own = sum(line["item_seconds"] for line in lines[1:])
    return max(0.0, 1e3 * (wall - own) / (len(lines) - 1))


def with_joblib(items: int, steps: int, processes: int) -> float:
    """Seconds for the same items with joblib, with the start of its processes."""
    import joblib

    began = time.perf_counter()
    pool = joblib.Parallel(n_jobs=processes, batch_size=1)
    results = pool(joblib.delayed(run_item)(METHOD, settings(steps), seed) for seed in range(items))
    assert len(results) == items
    return time.perf_counter() - began


def main() -> int:
    """Run the script; returns its exit code."""
    cli = parser(__doc__)
    cli.add_argument("--items", type=int, default=40)
    cli.add_argument("--steps", type=int, default=0, help="training steps of an item [1500; 60 with --quick]")
    cli.add_argument("--nodes", default="1,2,4", help="numbers of nodes")
    options = cli.parse_args()
    os.environ.update(thread_environment(1))
    items = 8 if options.quick else options.items
    steps = options.steps or (60 if options.quick else 1500)
    counts = [1, 2] if options.quick else [int(count) for count in options.nodes.split(",")]
    seconds, cost, alone = measure(items, steps, counts, 20 if options.quick else 200)
    return report(options, items, steps, seconds, cost, alone)


def measure(
    items: int, steps: int, counts: Sequence[int], empty: int
) -> tuple[dict[int, float], float, dict[int, float]]:
    """Return the seconds of each number of nodes, the queue's milliseconds per item, and the seconds of joblib."""
    names = [f"n{number}" for number in range(1, max(counts) + 1)]
    config = {"method": METHOD, "settings": settings(steps), "seeds": list(range(items))}
    nothing = {"method": "ping", "settings": {"rounds": 1, "kilobytes": 0}, "seeds": list(range(empty))}
    seconds = {}
    with tempfile.TemporaryDirectory() as folder, LocalCluster(Path(folder)) as cluster:
        cluster.start_server()
        cluster.start_nodes(names)
        with AdminClient.local(cluster.server_home) as admin:
            sweeps = Sweeps(admin)
            cost = queue_cost(sweeps.run(nothing, names[:1])[1])
            print(f"queue: {cost:.2f} ms an item", flush=True)
            for count in counts:
                seconds[count], _ = sweeps.run(config, names[:count])
                print(f"{count} nodes: {seconds[count]:.1f} s", flush=True)
    peer = {}
    for count in counts if find_spec("joblib") else ():
        peer[count] = with_joblib(items, steps, count)
        print(f"joblib, {count} processes: {peer[count]:.1f} s", flush=True)
    return seconds, cost, peer


def report(
    options: argparse.Namespace,
    items: int,
    steps: int,
    seconds: Mapping[int, float],
    cost: float,
    peer: Mapping[int, float],
) -> int:
    """Print tables and gates, and return the exit code."""
    base = seconds[min(seconds)] * min(seconds)
    available = cores()
    rows = [
        [f"{count}", f"{value:.1f}", f"{base / value:.2f}", f"{base / value / min(count, available):.2f}"]
        + ([f"{peer[count]:.1f}"] if peer else ["not installed"])
        for count, value in seconds.items()
    ]
    columns = ["nodes", "seconds", "times as fast", "of the ideal", "joblib with as many processes, seconds"]
    judged = None if options.quick else True
    gates: list[Gate] = [gate("queue, ms per item", cost, f"≤ {GOAL_MS:g}", judged and cost <= GOAL_MS)]
    for count, value in seconds.items():
        share = base / value / count
        if 1 < count <= available:
            holds = judged and share >= GOAL_SHARE
            gates.append(gate(f"speed-up on {count} nodes / {count}", share, f"≥ {GOAL_SHARE}", holds))
    scale = f"{items} items of {steps} steps each, one thread per node, {available} cores; ideal: nodes up to the cores"
    figures = {"seconds": dict(seconds), "queue_ms": cost, "joblib_seconds": dict(peer), "items": items, "steps": steps}
    tables = [Table("Time of a sweep by nodes", columns, rows)]
    return finish("sweep", options, scale=scale, claim=CLAIM, figures=figures, gates=gates, tables=tables)


if __name__ == "__main__":
    sys.exit(main())
