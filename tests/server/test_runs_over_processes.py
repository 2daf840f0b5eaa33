"""Runs over real processes: server, agents, run process and node programs, with TLS and the data relay."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import psutil
import pytest

from farshore.core.errors import ConfigError, NotFoundError
from farshore.core.profiles import DeviceProfile, LinkProfile
from farshore.core.seeds import Seed
from farshore.core.transfer import Transfer
from farshore.engines.ping.workload import WORKLOAD as PING
from farshore.runs.directory import RunDirectory
from farshore.server.certificates import certs_init, certs_issue
from farshore.simulations.in_process import InProcessRun

pytestmark = [pytest.mark.process, pytest.mark.timeout(110)]

# Long enough to be interrupted, with checkpoints in between; every block contributes to the checksum.
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


def _expected(config: dict[str, Any], *nodes: str) -> str:
    """Return the checksum of a run in which every block arrives once and in order."""

    def digest(node: str) -> bytes:
        value = bytes(32)
        for number in range(1, config["rounds"] + 1):
            block = Seed(7).child("round", number, "node", node).numpy().bytes(config["kilobytes"] << 10)
            value = hashlib.blake2b(value + block, digest_size=32).digest()
        return value

    return hashlib.blake2b(b"".join(map(digest, nodes)), digest_size=32).hexdigest()


def _check_sockets(directory: RunDirectory) -> None:
    """Check that socket bytes are the frame bytes plus the overhead of TLS and HTTP/2."""
    sockets = directory.socket_bytes()
    if sys.platform != "linux":
        assert sockets == {}
        return
    rows = directory.read_ledger().to_pylist()
    for direction in ("up", "down"):
        frames = sum(r["frame_bytes"] for r in rows if r["direction"] == direction)
        assert frames < sockets[direction] < 1.05 * frames + 16_384, direction


def _until_round(cloud: Any, run_id: str, until: Callable[..., Any], done: int = 10) -> None:
    until(lambda: cloud.run(run_id).done >= done)


def test_a_run_finishes_and_its_ledger_contains_every_block(cloud: Any) -> None:
    cloud.join("a", "b")
    run_id = cloud.submit({"rounds": 5, "kilobytes": 64}, count=2)
    info = cloud.when(run_id, "finished")
    assert list(info.nodes) == ["a", "b"]
    result = json.loads(info.result_json)
    assert set(result["nodes"]) == {"a", "b"}
    assert _checksum(info) == _expected({"rounds": 5, "kilobytes": 64}, "a", "b")
    assert all(metrics["rtt_ms"] > 0 for metrics in result["nodes"].values())
    directory = RunDirectory.open(Path(info.directory))
    assert directory.result == result
    rows = directory.read_ledger().to_pylist()
    for node in ("a", "b"):
        for kind, direction in (("block", "down"), ("echo", "up")):
            place = (node, kind, direction)
            sizes = [r["dense_bytes"] for r in rows if (r["node"], r["kind"], r["direction"]) == place]
            assert sizes == [64 << 10] * 5
    assert {r["attempt"] for r in rows} == {0}
    _check_sockets(directory)
    assert [m["step"] for m in directory.read_metrics()] == [1, 2, 3, 4, 5]
    assert cloud.node("a").runs == []


def test_a_run_over_processes_and_an_in_process_run_count_the_same_bytes(cloud: Any, tmp_path: Path) -> None:
    config = {"rounds": 3, "kilobytes": 64}
    cloud.join("a", "b")
    info = cloud.when(cloud.submit(config, count=2), "finished")
    real = RunDirectory.open(Path(info.directory)).read_ledger().to_pylist()
    rows: list[Transfer] = []
    InProcessRun(PING, PING.config(**config), tmp_path / "run", ("a", "b"), seed=7, recorder=rows.append).run()

    def sizes(found: Iterable[dict[str, Any]]) -> list[tuple[Any, ...]]:
        """Sizes of the programs' messages; acknowledgments and heartbeats depend on timing."""
        names = ("node", "kind", "direction", "step", "dense_bytes", "payload_bytes", "frame_bytes")
        return sorted(tuple(r[n] for n in names) for r in found if r["kind"] in ("block", "echo", "control"))

    assert len(rows) >= 2 * (2 + 2 * 3)
    assert sizes(real) == sizes(map(asdict, rows))


def test_a_run_with_killed_programs_on_either_side_gives_the_same_result(cloud: Any, until: Any) -> None:
    cloud.join("a", "b")
    run_id = cloud.submit(_LONG, count=2)
    _until_round(cloud, run_id, until)
    os.kill(_node_program(cloud, "b").pid, signal.SIGKILL)
    until(lambda: cloud.run(run_id).epoch == 1 and cloud.run(run_id).state == "running")
    _until_round(cloud, run_id, until, 28)
    os.kill(_run_process(cloud).pid, signal.SIGKILL)
    info = cloud.when(run_id, "finished")
    assert info.epoch == 2
    assert _checksum(info) == _expected(_LONG, "a", "b")
    log = cloud.log(info)
    assert "node b: its program was killed by signal 9" in log
    assert "the run process was killed by signal 9" in log
    assert log.count("continuing from the checkpoint of step") == 2
    attempts = {r["attempt"] for r in RunDirectory.open(Path(info.directory)).read_ledger().to_pylist()}
    assert attempts == {0, 1, 2}


def test_a_killed_agent_ends_its_program_and_the_run_continues_when_it_rejoins(cloud: Any, until: Any) -> None:
    cloud.join("a", "b")
    run_id = cloud.submit(_LONG, count=2)
    _until_round(cloud, run_id, until)
    program = _node_program(cloud, "a")
    cloud.agents["a"].kill()
    until(lambda: _gone([program]), 5)
    until(lambda: cloud.run(run_id).state == "waiting")
    assert until(lambda: "waiting for a (lost)" in cloud.run(run_id).reason)
    cloud.join("a")
    info = cloud.when(run_id, "finished")
    assert _checksum(info) == _expected(_LONG, "a", "b")
    assert info.epoch >= 1


def test_a_suspended_agent_is_lost_and_reconnects_when_resumed(cloud: Any, until: Any) -> None:
    cloud.join("a")
    agent = psutil.Process(cloud.agents["a"].pid)
    agent.suspend()
    try:
        until(lambda: cloud.node("a").state == "lost")
    finally:
        agent.resume()
    until(lambda: cloud.node("a").state == "connected")  # although its connection never broke
    cloud.when(cloud.submit({"rounds": 1, "kilobytes": 1}, count=1), "finished")


def test_a_killed_server_leaves_no_orphan_process_and_its_run_resumes_to_the_same_result(
    cloud: Any, until: Any
) -> None:
    cloud.join("a", "b")
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
    until(lambda: cloud.node("a").state == cloud.node("b").state == "connected")  # reconnected without being restarted
    until(lambda: _gone(programs), 10)
    with cloud.admin() as admin:
        admin.resume(run_id)
    info = cloud.when(run_id, "finished")
    assert (info.epoch, list(info.nodes)) == (1, ["a", "b"])
    assert _checksum(info) == _expected(_LONG, "a", "b")
    events = list(RunDirectory.open(Path(info.directory)).read_events())
    ends = ["starting", "running", "interrupted", "waiting", "starting", "running", "finished"]
    assert [kind for kind, _ in groupby(e["kind"] for e in events)][-len(ends) :] == ends
    assert events[-1]["epoch"] == 1
    assert events[-1]["nodes"] == ["a", "b"]


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
    # The ledger contains what was sent before the cancellation.
    assert RunDirectory(Path(cloud.run(running).directory)).read_ledger().num_rows > 5
    cloud.when(cloud.submit({"rounds": 1, "kilobytes": 1}, count=1), "finished")


def test_sigterm_ends_server_agent_and_their_processes_within_five_seconds(cloud: Any, until: Any) -> None:
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
        cloud.local  # noqa: B018 - the address file has been deleted
    cloud.up()
    assert cloud.run(run_id).state == "interrupted"


def test_an_invalid_configuration_is_refused_by_key_and_a_valid_one_is_stored_with_defaults(cloud: Any) -> None:
    with pytest.raises(ConfigError, match="rounds") as caught:
        cloud.submit({"rounds": -1}, count=1)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="round_count"):
        cloud.submit({"round_count": 1}, count=1)
    info = cloud.run(cloud.submit({"rounds": 3}, count=1))
    assert json.loads(info.config_json) == {"rounds": 3, "kilobytes": 1024, "checkpoint_every": 10, "pause_ms": 0.0}


def test_a_storage_error_on_a_node_fails_the_run_and_names_node_cause_and_hint(cloud: Any, until: Any) -> None:
    cloud.join("a", "b")
    run_id = cloud.submit({**_LONG, "rounds": 100_000}, count=2)
    _until_round(cloud, run_id, until, 5)
    folder = cloud.folder / "nodes" / "b" / "runs" / run_id / "checkpoints"
    shutil.rmtree(folder)
    folder.write_text("blocks the next checkpoint")
    info = cloud.when(run_id, "failed")
    assert re.match(r"node b, after step \d+ of 100000: ", info.reason)
    # Which of the two errors depends on what the node was doing with its directory.
    assert re.search(r"(File exists|Not a directory)[^–]* – check the disk and the directory's perm", info.reason)
    assert "\n" not in info.reason
    assert "Traceback" not in cloud.log(info)
    assert until(lambda: not cloud.node("a").runs and not cloud.node("b").runs)


def test_nodes_connect_directly_to_the_run_process_with_data_ports(start: Any, until: Any) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    cloud = start(data_ports=(port, port))
    cloud.join("a")
    run_id = cloud.submit({**_LONG, "rounds": 100_000}, count=1)
    _until_round(cloud, run_id, until, 3)
    ports = {c.raddr.port for c in _node_program(cloud, "a").net_connections() if c.raddr}
    assert ports == {port}
    with cloud.admin() as admin:
        admin.cancel(run_id)
    if sys.platform == "linux":
        assert until(lambda: RunDirectory(Path(cloud.run(run_id).directory)).socket_bytes())["up"] > 3 * 16 << 10


def test_a_run_finishes_without_tls_on_loopback(start: Any) -> None:
    cloud = start(insecure=True)
    assert cloud.local.certificate is None
    cloud.join("a", insecure=True)
    cloud.when(cloud.submit({"rounds": 2, "kilobytes": 1}, count=1), "finished")


def test_nodes_can_trust_a_private_authority_or_the_fingerprint_of_an_issued_certificate(
    tmp_path: Path, start: Any
) -> None:
    authority = certs_init(tmp_path / "certs")
    certificate, key = certs_issue(tmp_path / "certs", ["cloud.example"])
    cloud = start(certificate=certificate, key=key)
    cloud.join("a", ca=authority)
    cloud.join("b")
    cloud.when(cloud.submit({"rounds": 2, "kilobytes": 1}, count=2), "finished")


def test_a_second_run_waits_for_busy_nodes_and_reports_the_reason(cloud: Any, until: Any) -> None:
    cloud.join("a")
    first = cloud.submit({**_LONG, "rounds": 100_000}, count=1)
    _until_round(cloud, first, until, 1)
    second = cloud.submit({"rounds": 2, "kilobytes": 1}, count=1)
    reason = until(lambda: cloud.run(second).reason)
    assert reason == f"waiting for 1 of 1 node; known: a (busy with run {first})"
    with cloud.admin() as admin:
        admin.cancel(first)
    cloud.when(second, "finished")


def test_cut_connections_cause_no_restart_and_no_loss(cloud: Any, proxy: Any, until: Any) -> None:
    tcp_proxy = proxy(cloud.local.address)
    cloud.join("a", address=tcp_proxy.address)
    run_id = cloud.submit(_LONG, count=1)
    for done in (6, 14, 22):
        _until_round(cloud, run_id, until, done)
        assert tcp_proxy.cut() >= 2  # the control stream and the data connection
    info = cloud.when(run_id, "finished")
    assert info.epoch == 0
    assert _checksum(info) == _expected(_LONG, "a")
    _check_sockets(RunDirectory(Path(info.directory)))  # including the connections that were cut


def test_a_run_that_keeps_failing_reaches_the_restart_limit(start: Any, until: Any) -> None:
    cloud = start(restarts_per_hour=1)
    cloud.join("a")
    run_id = cloud.submit({**_LONG, "rounds": 100_000}, count=1)
    for epoch in (0, 1):
        until(lambda e=epoch: cloud.run(run_id).epoch == e and cloud.run(run_id).state == "running")
        os.kill(_run_process(cloud).pid, signal.SIGKILL)
    info = cloud.when(run_id, "failed")
    assert info.reason == "the run process was killed by signal 9; restarted 1 times within an hour"


def test_a_link_profile_throttles_the_node(cloud: Any) -> None:
    link = LinkProfile(up_mbps=16, down_mbps=16, latency_ms=20)
    cloud.join("a", profile=DeviceProfile(link=link))
    info = cloud.when(cloud.submit({"rounds": 4, "kilobytes": 512}, count=1), "finished")
    metrics = json.loads(info.result_json)["nodes"]["a"]
    assert 40 <= metrics["rtt_ms"] < 2000
    # 512 KiB down and up at 2 MB/s each way, plus two latencies.
    assert 0.9 < metrics["echo_megabytes_per_second"] <= 2.0
