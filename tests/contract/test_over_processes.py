"""The contract over real processes: the same workloads, with nodes that join, die, carry labels and send metrics."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from farshore.core.errors import ConfigError
from farshore.core.nodes import RoleCount, RoleRequest
from farshore.runs.directory import RunDirectory
from farshore.runs.state_store import StateStore

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("contract_site")]


def submit(cloud: Any, method: str, config: dict[str, Any], *roles: RoleRequest) -> str:
    with cloud.admin() as admin:
        return str(admin.submit(method, config, roles=roles, seed=7).id)


def result(cloud: Any, run: str, seconds: float = 60) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(cloud.when(run, "finished", seconds=seconds).result_json)
    return found


def growing(least: int) -> RoleRequest:
    return RoleRequest("", RoleCount.parse(f"{least}+"))


def test_a_node_that_joins_at_step_40_of_100_takes_part_from_there_on(cloud: Any) -> None:
    cloud.join("a")
    run = submit(cloud, "counting", {"wait_at": 40}, growing(1))
    cloud.when(run, "running", done=40)
    cloud.join("c")
    got = result(cloud, run)
    assert got["changes"] == [[40, "c", "joined"]]
    assert got["doers"] == ["a"] * 40 + ["c"] * 60
    info = cloud.run(run)
    assert list(info.nodes) == ["a", "c"]
    assert RunDirectory.open(Path(info.directory)).info["nodes"] == ["a", "c"]


def test_a_node_does_not_join_a_run_that_was_not_submitted_to_grow(cloud: Any) -> None:
    cloud.join("a", "b")
    run = submit(cloud, "counting", {}, RoleRequest("", RoleCount(1, 1)))
    assert set(result(cloud, run)["doers"]) == {"a"}
    with pytest.raises(ConfigError, match="nodes cannot join a run of 'ping'"):
        submit(cloud, "ping", {}, growing(1))


def test_a_killed_node_program_returns_and_is_used_again_at_once(cloud: Any) -> None:
    cloud.join("a", "b")
    settings = {"victim": "a", "kill_at": 30, "wait_at": 31, "wait_for": "returned"}
    run = submit(cloud, "counting", settings, RoleRequest("", RoleCount(2, 2)))
    got = result(cloud, run)
    kinds = [(node, kind) for _, node, kind in got["changes"]]
    assert kinds == [("a", "lost"), ("a", "returned")]
    returned = got["changes"][1][0]
    assert got["doers"][:30] == ["a"] * 30
    assert got["doers"][returned:] == ["a"] * (100 - returned)


def test_ten_thousand_records_survive_a_kill_of_the_run_process(cloud: Any) -> None:
    cloud.join("a")
    run = submit(cloud, "counting", {"records": 100, "pause": 0.02}, RoleRequest("", RoleCount(1, 1)))
    for done in (37, 73):
        cloud.when(run, "running", done=done)
        server = psutil.Process(cloud.server.pid)
        (process,) = [p for p in server.children(recursive=True) if "run_process" in " ".join(p.cmdline())]
        os.kill(process.pid, signal.SIGKILL)
        cloud.when(run, "waiting", "starting", "running", "finished")
    assert result(cloud, run)["records"] == 10_000
    directory = RunDirectory.open(Path(cloud.run(run).directory))
    state = StateStore(directory.checkpoints, directory.path / "streams")
    assert [int(r["number"]) for r in state.stream("items")] == list(range(10_000))


def test_a_slow_reader_of_published_values_gets_the_newest(cloud: Any, tmp_path: Path) -> None:
    cloud.join("a")
    run = submit(cloud, "publishing", {"folder": str(tmp_path)}, RoleRequest("", RoleCount(1, 1)))
    assert result(cloud, run) == {"steps": [100]}


def test_roles_go_to_nodes_by_label_and_both_sides_see_them(cloud: Any) -> None:
    cloud.join("a", "b", labels={"sensor": "camera"})
    cloud.join("c")
    run = submit(cloud, "roles", {}, RoleRequest("lidar", RoleCount(1, 1)))
    seen = result(cloud, run)
    assert {n: s["server"] for n, s in seen.items()} == {
        "c": ["lidar", 0, 1],
        "a": ["camera", 0, 2],
        "b": ["camera", 1, 2],
    }
    assert all(s["server"] == s["node"] for s in seen.values())
    assert seen["a"]["labels"] == {"sensor": "camera"}
    assert dict(cloud.run(run).roles) == {"a": "camera", "b": "camera", "c": "lidar"}
    assert dict(cloud.node("a").labels) == {"sensor": "camera"}


def test_a_run_says_which_role_waits_for_what(cloud: Any, until: Any) -> None:
    cloud.join("a")
    run = submit(cloud, "roles", {"needs": "accelerator"})
    reason = until(lambda: cloud.run(run).reason)
    assert "for the role 'camera' with accelerator and label sensor=camera" in reason


def test_node_metrics_are_kept_by_node_and_counted_in_the_ledger(cloud: Any) -> None:
    cloud.join("a")
    run = submit(cloud, "counting", {"steps": 5}, RoleRequest("", RoleCount(1, 1)))
    result(cloud, run)
    directory = RunDirectory.open(Path(cloud.run(run).directory))
    lines = list(directory.read_node_metrics())
    assert [(line["node"], line["step"], line["step_squared"]) for line in lines] == [
        ("a", step, float(step**2)) for step in range(5)
    ]
    ledger = directory.read_ledger().to_pylist()
    assert [row["step"] for row in ledger if row["kind"] == "metrics"] == list(range(5))
