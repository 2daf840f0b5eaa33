"""Split fine-tuning over real processes: killed processes and cut connections do not change the final weights."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from farshore.runs.checkpoints import CheckpointStore

pytestmark = [pytest.mark.slow, pytest.mark.process, pytest.mark.timeout(300)]

NODES = ("edge-0", "edge-1")
STEPS = 70
#: Settings with state of their own: dropout, rounding, running statistics, micro-batches, averaged fronts.
CHANGES: dict[str, Any] = {"cut": "ffn_svd", "rank": 8, "up": "int4", "down": "int4", "dropout": 0.1, "epochs": 24}
CHANGES |= {
    "micro_batches": 2,
    "average_every": 7,
    "checkpoint_every": 5,
    "eval_every": 30,
    "batch_size": 8,
    "steps": STEPS,
}


def _below(process: psutil.Process, module: str) -> psutil.Process:
    return next(p for p in process.children(recursive=True) if module in p.cmdline())


class Faults:
    """Faults to inject into a run."""

    def __init__(self, cloud: Any, proxies: dict[str, Any], until: Callable[..., Any], run_id: str) -> None:
        self.cloud, self.proxies, self.until, self.run_id = cloud, proxies, until, run_id

    def edge_killed(self) -> None:
        """Kill one edge's program with SIGKILL."""
        os.kill(_below(psutil.Process(self.cloud.agents["edge-1"].pid), "farshore.client.node_process").pid, 9)

    def run_process_killed(self) -> None:
        """Kill the run process with SIGKILL."""
        os.kill(_below(psutil.Process(self.cloud.server.pid), "farshore.server.run_process").pid, 9)

    def server_killed(self) -> None:
        """Kill the server with SIGKILL, start a new one and resume the run."""
        os.kill(self.cloud.server.pid, signal.SIGKILL)
        self.cloud.server.join()
        self.cloud.up()
        self.until(lambda: all(self.cloud.node(n).state == "connected" for n in NODES), 90)
        with self.cloud.admin() as admin:
            admin.resume(self.run_id)

    def connections_cut(self) -> None:
        """Cut one edge's TCP connections."""
        assert self.proxies["edge-0"].cut() >= 2


@pytest.mark.parametrize("seed", range(4))
def test_weights_after_kills_and_cuts_equal_those_of_an_undisturbed_run(
    new_runner: Callable[[], Any], start: Any, proxy: Any, until: Any, tiny_data: dict[str, Path], seed: int
) -> None:
    runner = new_runner()
    config = runner.config(**CHANGES)
    whole = runner.run(config, len(NODES), directory=runner.folder / "whole")

    cloud = start(data=tiny_data)
    proxies = {name: proxy(cloud.local.address) for name in NODES}
    for name in NODES:
        cloud.join(name, address=proxies[name].address, data=tiny_data)
    run_id = cloud.submit(config.model_dump(), method="split_fine_tuning", nodes=NODES)
    faults = Faults(cloud, proxies, until, run_id)
    plan = ["connections_cut", "edge_killed", "connections_cut", "run_process_killed", "server_killed"]
    rng = random.Random(seed)
    rng.shuffle(plan)
    for number, name in enumerate(plan, start=1):
        step = number * STEPS // (len(plan) + 2)
        cloud.when(run_id, "running", done=step, seconds=90)
        time.sleep(rng.uniform(0, 0.1))  # some micro-batch of some step
        getattr(faults, name)()
    info = cloud.when(run_id, "finished", seconds=90)

    assert info.epoch >= 3
    assert json.loads(info.result_json)["evaluations"] == whole.result["evaluations"]
    places = {"server": Path(info.directory) / "checkpoints"}
    places |= {name: cloud.folder / "nodes" / name / "runs" / run_id / "checkpoints" for name in NODES}
    for owner, folder in places.items():
        expected, _ = CheckpointStore(runner.folder / "whole" / owner).load(STEPS)
        found, _ = CheckpointStore(folder).load(STEPS)
        assert found.keys() == expected.keys()
        assert any(n.startswith("optimizer.") for n in found)
        assert [n for n in found if not np.array_equal(found[n], expected[n])] == [], owner
