"""Runs over real processes: server, agents, run process and node programs, TLS and the relay between them."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from farshore.core.errors import NotFoundError
from farshore.runs.directory import RunDirectory

pytestmark = [pytest.mark.process, pytest.mark.timeout(110)]

# Long enough to be hit in the middle, with checkpoints on the way; every block goes into the checksum.
_LONG = {"rounds": 40, "kilobytes": 16, "checkpoint_every": 4, "pause_ms": 40}


def _module(name: str, processes: list[psutil.Process]) -> list[psutil.Process]:
    return [p for p in processes if p.is_running() and name in p.cmdline()]


def _run_process(cloud: Any) -> psutil.Process:
    return _module("farshore.server.run_process", psutil.Process(cloud.server.pid).children())[0]


def _node_program(cloud: Any, node: str) -> psutil.Process:
    return _module("farshore.client.node_process", psutil.Process(cloud.agents[node].pid).children())[0]


def _gone(processes: list[psutil.Process]) -> bool:
    return all(not p.is_running() or p.status() == psutil.STATUS_ZOMBIE for p in processes)


def _checksum(info: Any) -> str:
    return str(json.loads(info.result_json)["checksum"])


def _until_round(cloud: Any, run_id: str, until: Callable[..., Any], done: int = 10) -> None:
    until(lambda: cloud.run(run_id).done >= done)


def test_a_run_finishes_and_its_ledger_holds_every_block(cloud: Any) -> None:
    cloud.join("a", "b")
    run_id = cloud.submit({"rounds": 5, "kilobytes": 64}, count=2)
    info = cloud.when(run_id, "finished")
    assert list(info.nodes) == ["a", "b"]
    result = json.loads(info.result_json)
    assert set(result["nodes"]) == {"a", "b"}
    assert all(figures["rtt_ms"] > 0 for figures in result["nodes"].values())
    directory = RunDirectory.open(Path(info.directory))
    assert directory.result == result
    rows = directory.read_ledger().to_pylist()
    for node in ("a", "b"):
        for kind, direction in (("block", "down"), ("echo", "up")):
            place = (node, kind, direction)
            sizes = [r["dense_bytes"] for r in rows if (r["node"], r["kind"], r["direction"]) == place]
            assert sizes == [64 << 10] * 5
    assert {r["attempt"] for r in rows} == {0}
    assert [m["step"] for m in directory.read_metrics()] == [1, 2, 3, 4, 5]
    assert cloud.node("a").runs == []


def test_programs_killed_on_either_side_cost_nothing_but_time(cloud: Any, until: Any) -> None:
    cloud.join("a", "b")
    reference = _checksum(cloud.when(cloud.submit(_LONG, count=2), "finished"))
    run_id = cloud.submit(_LONG, count=2)
    _until_round(cloud, run_id, until)
    os.kill(_node_program(cloud, "b").pid, signal.SIGKILL)
    until(lambda: cloud.run(run_id).epoch == 1 and cloud.run(run_id).state == "running")
    _until_round(cloud, run_id, until, 28)
    os.kill(_run_process(cloud).pid, signal.SIGKILL)
    info = cloud.when(run_id, "finished")
    assert info.epoch == 2
    assert _checksum(info) == reference
    log = cloud.log(info)
    assert "node b: its program was killed by signal 9" in log
    assert "the run process was killed by signal 9" in log
    assert log.count("continuing from the checkpoint of step") == 2
    attempts = {r["attempt"] for r in RunDirectory.open(Path(info.directory)).read_ledger().to_pylist()}
    assert attempts == {0, 1, 2}


def test_a_killed_agent_takes_its_program_along_and_its_return_continues_the_run(cloud: Any, until: Any) -> None:
    cloud.join("a", "b")
    reference = _checksum(cloud.when(cloud.submit(_LONG, count=2), "finished"))
    run_id = cloud.submit(_LONG, count=2)
    _until_round(cloud, run_id, until)
    program = _node_program(cloud, "a")
    cloud.agents["a"].kill()
    until(lambda: _gone([program]), 5)
    until(lambda: cloud.run(run_id).state == "waiting")
    assert until(lambda: "waiting for a (lost)" in cloud.run(run_id).reason)
    cloud.join("a")
    info = cloud.when(run_id, "finished")
    assert _checksum(info) == reference
    assert info.epoch >= 1


def test_a_killed_server_leaves_no_orphan_and_its_run_resumes_to_the_same_result(cloud: Any, until: Any) -> None:
    cloud.join("a", "b")
    reference = _checksum(cloud.when(cloud.submit(_LONG, count=2), "finished"))
    run_id = cloud.submit(_LONG, count=2)
    _until_round(cloud, run_id, until)
    below = psutil.Process(cloud.server.pid).children(recursive=True)
    programs = [_node_program(cloud, "a"), _node_program(cloud, "b")]
    cloud.server.kill()
    cloud.server.join()
    until(lambda: _gone(below), 5)
    cloud.up()
    info = cloud.run(run_id)
    assert info.state == "interrupted"
    assert "runs resume" in info.reason
    until(lambda: cloud.node("a").state == cloud.node("b").state == "connected")  # by themselves
    until(lambda: _gone(programs), 10)
    with cloud.admin() as admin:
        admin.resume(run_id)
    info = cloud.when(run_id, "finished")
    assert (info.epoch, list(info.nodes)) == (1, ["a", "b"])
    assert _checksum(info) == reference


def test_cancel_works_while_waiting_and_while_running(cloud: Any, until: Any) -> None:
    waiting = cloud.submit(_LONG, nodes=("nobody",))
    until(lambda: cloud.run(waiting).reason == "waiting for nobody (never joined)")
    with cloud.admin() as admin:
        assert admin.cancel(waiting).state == "cancelled"
    cloud.join("a")
    running = cloud.submit({**_LONG, "rounds": 100_000}, count=1)
    _until_round(cloud, running, until, 3)
    processes = [_run_process(cloud), _node_program(cloud, "a")]
    with cloud.admin() as admin:
        assert admin.cancel(running).state == "cancelled"
    until(lambda: _gone(processes), 6)
    # What had crossed by then is in the ledger all the same.
    assert RunDirectory(Path(cloud.run(running).directory)).read_ledger().num_rows > 5
    cloud.when(cloud.submit({"rounds": 1, "kilobytes": 1}, count=1), "finished")


def test_sigterm_ends_server_and_agent_in_five_seconds_without_a_trace(cloud: Any, until: Any) -> None:
    cloud.join("a")
    run_id = cloud.submit({**_LONG, "rounds": 100_000}, count=1)
    _until_round(cloud, run_id, until, 3)
    agent, server = psutil.Process(cloud.agents["a"].pid), psutil.Process(cloud.server.pid)
    below = [*agent.children(recursive=True), *server.children(recursive=True)]
    assert len(below) >= 2
    server.terminate()
    cloud.server.join(5)
    assert cloud.server.exitcode == 0
    agent.terminate()
    cloud.agents["a"].join(5)
    assert cloud.agents["a"].exitcode == 0
    until(lambda: _gone(below), 1)
    with pytest.raises(NotFoundError):
        cloud.local  # noqa: B018 - the address file is gone
    cloud.up()
    assert cloud.run(run_id).state == "interrupted"


def test_a_wrong_configuration_fails_the_run_with_the_key(cloud: Any) -> None:
    cloud.join("a")
    info = cloud.when(cloud.submit({"rounds": -1}, count=1), "failed")
    assert "rounds" in info.reason
    assert "\n" not in info.reason
    assert cloud.node("a").runs == []
