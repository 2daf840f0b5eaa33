"""Sweeps over a real server and real nodes: faults, joins, and the same results as on this machine alone."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from farshore.cli.main import execute
from farshore.core.nodes import RoleCount, RoleRequest
from farshore.core.workloads import load
from farshore.engines.work_queue.records import STREAM, decode
from farshore.runs.directory import RunDirectory
from farshore.runs.state_store import StateStore
from farshore.simulations.node_simulation import NodeSimulation
from tests.conftest import children

pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.timeout(240)]

#: Items of about half a second.
PING: dict[str, Any] = {
    "method": "ping",
    "settings": {"kilobytes": 2, "pause_ms": 100},
    "grid": {"rounds": [4, 5]},
    "seeds": list(range(6)),
}
TRAIN = {"model": "mlp", "steps": 6, "batch": 16, "train_samples": 160, "log_every": 1}
TRAINING = {"method": "data_parallel", "settings": TRAIN, "grid": {"lr": [0.01, 0.1]}, "seeds": [0, 1, 2]}


def submit(cloud: Any, config: Mapping[str, Any], nodes: str = "2+") -> str:
    values = load("sweep").config.model_validate(config).model_dump(mode="json")
    with cloud.admin() as admin:
        return str(admin.submit("sweep", values, roles=(RoleRequest("", RoleCount.parse(nodes)),), seed=0).id)


def result(cloud: Any, run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(cloud.when(run, "finished", seconds=150).result_json)
    return found


def here(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The result of the sweep on this machine alone."""
    sweep = load("sweep")
    settings = sweep.config.model_validate({**config, "slots": 2})
    return NodeSimulation(sweep, settings, folder / "here", {"local": "node"}).run()


def recorded(cloud: Any, run: str) -> Counter[tuple[Any, int]]:
    """How often each item is in the run's stream."""
    directory = RunDirectory.open(Path(cloud.run(run).directory))
    store = StateStore(directory.checkpoints, directory.path / "streams")
    results = [decode(record) for record in store.stream(STREAM)]
    return Counter((json.dumps(result.item.config["cell"]), result.item.seed) for result in results)


def process_of(pid: int, module: str) -> psutil.Process | None:
    """A descendant that executes a module."""
    for process in children(pid):
        try:
            if module in " ".join(process.cmdline()):
                return process
        except psutil.Error:
            continue
    return None


def test_nodes_that_die_join_late_or_return_change_no_result(
    cloud: Any, tmp_path: Path, until: Callable[..., Any]
) -> None:
    cloud.join("a", "b")
    run = submit(cloud, PING)
    cloud.when(run, "running", done=2)
    program = until(lambda: process_of(cloud.agents["a"].pid, "client.node_process"))
    program.kill()  # its worker dies with it, and the node returns
    cloud.when(run, "running", done=4)
    cloud.join("late")
    os.kill(cloud.agents["b"].pid, signal.SIGKILL)  # the machine does not return
    got = result(cloud, run)
    assert got["table"]["rows"] == here(PING, tmp_path)["table"]["rows"]
    assert got["measured"]["nodes"].get("late", 0) > 0
    assert set(recorded(cloud, run).values()) == {1}
    assert len(recorded(cloud, run)) == 12


def test_a_killed_run_process_continues_with_what_is_left(cloud: Any, tmp_path: Path) -> None:
    cloud.join("a", "b")
    run = submit(cloud, PING)
    cloud.when(run, "running", done=4)
    process = process_of(cloud.server.pid, "server.run_process")
    assert process is not None
    process.kill()
    cloud.when(run, "waiting", "starting", "running", "finished")
    got = result(cloud, run)
    assert got["table"]["rows"] == here(PING, tmp_path)["table"]["rows"]
    assert set(recorded(cloud, run).values()) == {1}
    directory = RunDirectory.open(Path(cloud.run(run).directory))
    dealt = [row for row in directory.read_ledger().to_pylist() if row["kind"] == "item"]
    repeated = [step for step, count in Counter(row["step"] for row in dealt).items() if count > 1]
    assert len(repeated) <= 2, "only what two nodes were working on is done again"


def test_a_stopped_worker_is_overtaken_by_a_second_node(cloud: Any, tmp_path: Path, until: Callable[..., Any]) -> None:
    cloud.join("a", "b")
    run = submit(cloud, PING)
    cloud.when(run, "running", done=3)
    worker = until(lambda: process_of(cloud.agents["a"].pid, "worker_process"))
    worker.suspend()
    got = result(cloud, run)
    assert got["table"]["rows"] == here(PING, tmp_path)["table"]["rows"]
    assert set(recorded(cloud, run).values()) == {1}
    until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)


def test_training_over_nodes_has_the_bits_of_this_machine(cloud: Any, tmp_path: Path) -> None:
    cloud.join("a", "b")
    assert result(cloud, submit(cloud, TRAINING))["table"]["rows"] == here(TRAINING, tmp_path)["table"]["rows"]


def test_the_command_runs_over_nodes_and_sends_a_data_set_once(
    cloud: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cloud.join("a", "b")
    (tmp_path / "extra.bin").write_bytes(b"x" * 5000)
    command = ["sweep", "ping", "--grid", "rounds=1,2", "--seeds", "0..2", "--nodes", "2", "--csv", f"{tmp_path}/s.csv"]
    command += ["--home", str(cloud.options.home), "--data", f"extra={tmp_path / 'extra.bin'}", "--json"]
    assert execute(command) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert events[-1]["event"] == "swept"
    assert len(events[-1]["rows"]) == 6
    assert len((tmp_path / "s.csv").read_text().splitlines()) == 7
    ledger = RunDirectory.open(Path(events[-1]["directory"])).read_ledger().to_pylist()
    sent = Counter(row["node"] for row in ledger if row["kind"] == "asset")
    assert sent == {"a": 1, "b": 1}


def test_a_cancelled_sweep_leaves_no_process_and_is_resumed_by_the_command(
    cloud: Any, capsys: pytest.CaptureFixture[str], until: Callable[..., Any]
) -> None:
    cloud.join("a")
    run = submit(cloud, PING, "1+")
    cloud.when(run, "running", done=3)
    with cloud.admin() as admin:
        admin.cancel(run)
    cloud.when(run, "cancelled")
    until(lambda: process_of(cloud.agents["a"].pid, "worker_process") is None)
    command = ["sweep", "ping", "--set", "kilobytes=2", "--set", "pause_ms=100", "--grid", "rounds=4,5"]
    command += ["--seeds", "0..5", "--resume", "--home", str(cloud.options.home), "--json"]
    assert execute(command) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(last["rows"]) == 12
    assert set(recorded(cloud, run).values()) == {1}
