"""The contract in one process: joins, returns, streams, published values, roles and node metrics."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from farshore.core.errors import RunFailedError
from farshore.core.nodes import NodeChange, NodeInfo
from farshore.core.transfer import Transfer
from farshore.core.workloads import load
from farshore.simulations.in_process import InProcessRun
from farshore.wire.cohort import Cohort
from farshore.wire.memory import pair

pytestmark = pytest.mark.usefixtures("contract_site")


def counting(folder: Path, nodes: tuple[str, ...] = ("a", "b"), **settings: Any) -> InProcessRun:
    workload = load("counting")
    return InProcessRun(workload, workload.config(**settings), folder / "run", nodes)


def once(at: int, act: Callable[[], None]) -> Callable[[int, int, Mapping[str, Any]], None]:
    """A progress callback that acts at a step; progress of one step may be reported twice."""
    pending = [act]

    def on_progress(done: int, total: int, values: Mapping[str, Any]) -> None:
        if done == at and pending:
            pending.pop()()

    return on_progress


def test_a_node_that_joins_at_step_40_of_100_takes_part_from_there_on(tmp_path: Path) -> None:
    run = counting(tmp_path, wait_at=40)
    run.on_progress = once(40, lambda: run.join("c"))
    result = run.run()
    assert result["changes"] == [[40, "c", "joined"]]
    assert result["doers"] == ["a"] * 40 + ["c"] * 60


def test_a_killed_node_returns_and_is_used_again_at_once(tmp_path: Path) -> None:
    run = counting(tmp_path, wait_at=30, wait_for="returned")
    run.on_progress = once(30, lambda: run.kill("a"))
    result = run.run()
    assert sorted(result["changes"]) == [[30, "a", "lost"], [30, "a", "returned"]]
    assert result["doers"] == ["a"] * 100


def test_a_node_that_is_lost_in_the_middle_of_an_item_is_reported_once_and_others_go_on(tmp_path: Path) -> None:
    run = counting(tmp_path)
    seen: list[int] = []

    def on_progress(done: int, total: int, values: Mapping[str, Any]) -> None:
        seen.append(done)
        if done in (10, 20):
            run.kill("a" if done == 10 else "b")

    run.on_progress = on_progress
    result = run.run()
    assert seen == list(range(1, 101))
    assert [change[2] for change in result["changes"]].count("lost") == 2
    assert result["records"] == 100


def test_streams_and_changes_survive_a_resume_without_a_gap_or_a_double(tmp_path: Path) -> None:
    stopped = counting(tmp_path, records=7)

    def stop(done: int, total: int, values: Mapping[str, Any]) -> None:
        if done == 57:
            raise RuntimeError("power cut")

    stopped.on_progress = stop
    with pytest.raises(RuntimeError, match="power cut"):
        stopped.run()
    result = counting(tmp_path, records=7).run()
    assert result["records"] == 700
    assert len(result["doers"]) == 100


def test_node_metrics_arrive_and_are_in_the_ledger(tmp_path: Path) -> None:
    rows: list[Transfer] = []
    got: list[tuple[str, int, dict[str, float]]] = []
    run = counting(tmp_path, steps=5)
    run = InProcessRun(
        run.workload,
        run.config,
        run.directory,
        run.nodes,
        recorder=rows.append,
        on_node_metrics=lambda node, step, values: got.append((node, step, values)),
    )
    run.run()
    assert got == [("a", step, {"items": 1.0, "step_squared": float(step**2)}) for step in range(5)]
    metrics = [row for row in rows if row.kind == "metrics"]
    assert [(row.direction, row.step) for row in metrics] == [("up", step) for step in range(5)]


def test_a_slow_reader_of_published_values_gets_the_newest(tmp_path: Path) -> None:
    workload = load("publishing")
    config = workload.config(folder=str(tmp_path))
    assert InProcessRun(workload, config, tmp_path / "run").run() == {"steps": [100]}


def test_both_sides_see_the_same_roles_and_shards(tmp_path: Path) -> None:
    workload = load("roles")
    roles = {"l": "lidar", "c1": "camera", "c2": "camera"}
    seen = InProcessRun(workload, workload.config(), tmp_path / "run", tuple(roles), roles=roles).run()
    for node, expected in {"l": ["lidar", 0, 1], "c1": ["camera", 0, 2], "c2": ["camera", 1, 2]}.items():
        assert seen[node]["server"] == seen[node]["node"] == expected


# ---- the cohort itself


def cohort(*names: str, may_join: bool = False) -> tuple[Cohort, dict[str, Any]]:
    ends = {name: pair(name) for name in names}
    made = Cohort({n: server for n, (server, _) in ends.items()}, {n: NodeInfo(n) for n in names}, may_join=may_join)
    return made, {n: node for n, (_, node) in ends.items()}


def test_a_waiting_receiver_is_woken_by_a_join() -> None:
    made, _ = cohort("a", may_join=True)
    server, _ = pair("b")
    timer = threading.Timer(0.1, made.offer, ("b", server, NodeInfo("b", "node", (1, 2))))
    timer.start()
    assert made.receive(timeout=20, changes=True) == ("b", NodeChange("joined"))
    assert list(made.channels) == ["a", "b"]
    assert made.nodes["b"].shard == (1, 2)


def test_messages_that_were_sent_before_a_loss_come_first() -> None:
    from farshore.core.errors import PeerLostError
    from farshore.core.message import Message

    made, nodes = cohort("a", "b")
    nodes["a"].send(Message("last"))
    made.channels["a"].fail(PeerLostError("node a: gone"))
    assert made.receive(timeout=5, changes=True)[1].kind == "last"  # type: ignore[union-attr]
    assert made.receive(timeout=5, changes=True) == ("a", NodeChange("lost", "node a: gone"))
    with pytest.raises(TimeoutError):
        made.receive(timeout=0.05, changes=True)


def test_a_dismissed_node_is_not_reported_as_lost() -> None:
    made, _ = cohort("a", "b")
    made.dismiss("a", "it lies")
    with pytest.raises(TimeoutError):
        made.receive(timeout=0.05, changes=True)


def test_a_wait_for_nodes_is_reported_and_so_is_its_end() -> None:
    from farshore.core.errors import PeerLostError

    said: list[str] = []
    ends = pair("a")
    made = Cohort({"a": ends[0]}, {"a": NodeInfo("a")}, on_wait=said.append, on_resume=lambda: said.append("resumed"))
    ends[0].fail(PeerLostError("node a: gone"))
    assert made.receive(changes=True)[0] == "a"
    again, _ = pair("a")
    threading.Timer(0.1, made.offer, ("a", again)).start()
    assert made.receive(timeout=20, changes=True) == ("a", NodeChange("returned"))
    assert said == ["waiting for a node to return: node a: gone", "resumed"]


def test_a_run_without_any_node_that_can_return_fails() -> None:
    from farshore.core.errors import PeerLostError

    made, _ = cohort("a")
    made.channels["a"].fail(PeerLostError("node a: broken"))
    assert made.receive(changes=True) == ("a", NodeChange("lost", "node a: broken"))
    threading.Timer(0.1, made.exclude, ("a", "node a: broken for good")).start()
    with pytest.raises(RunFailedError, match="no reachable nodes remain: node a: broken for good"):
        made.receive(timeout=20, changes=True)
