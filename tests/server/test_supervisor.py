"""How a supervisor handles the events of a restart epoch, for methods that restart and methods that continue."""

from __future__ import annotations

import asyncio
from collections import deque
from pathlib import Path
from typing import Any

import pytest

from farshore.core.errors import ExitCode
from farshore.core.nodes import NodeInfo, place
from farshore.proto import control_pb2 as pb
from farshore.runs.directory import RunDirectory
from farshore.server.restart_limit import RestartLimit
from farshore.server.run import Event, Run
from farshore.server.run_log import RunLog
from farshore.server.supervisor import Outcome, Supervisor


class _FakeHost:
    def __init__(self) -> None:
        self.started: list[tuple[str, pb.StartProgram]] = []
        self.disconnected: set[str] = set()
        self.routes: dict[str, str] = {}

    async def assign(self, run: Run) -> None:
        run.cohort = {"a": "node", "b": "node"}

    def launch_parameters(self, run: Run) -> dict[str, Any]:
        return {}

    def node_info(self, run: Run, name: str) -> NodeInfo:
        return NodeInfo(name, run.cohort[name], place(run.cohort)[name])

    def start_program(self, run: Run, node: str, command: pb.StartProgram) -> bool:
        self.started.append((node, command))
        run.programs[node] = command.epoch
        return True

    def is_connected(self, node: str) -> bool:
        return node not in self.disconnected

    def stop_programs(self, run: Run, reason: str) -> None: ...

    def add_route(self, ticket: str, run: Run, node: str, socket: Path) -> None:
        self.routes[ticket] = node

    def remove_routes(self, run: Run) -> None: ...

    def data_connected(self, run_id: str, node: str, port: int, peer: str) -> None: ...

    def write_socket_counts(self, run: Run) -> None: ...

    def save(self, run: Run) -> None: ...


class _FakeChild:
    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []

    def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)

    async def wait(self) -> int:
        return -11


class _Fixture:
    def __init__(self, folder: Path, on_lost_node: str) -> None:
        self.host, self.child = _FakeHost(), _FakeChild()
        self.run = Run(
            "r", "m", "{}", 1, folder, RunLog(folder / "log.txt"), cohort={"a": "node", "b": "node"}, epoch=3
        )
        self.supervisor = Supervisor(self.run, self.host, 2)
        self.tickets = {"ticket-a": "a", "ticket-b": "b"}
        assert self.handle(Event("ready", epoch=3, details={"port": 0, "on_lost_node": on_lost_node})) is None

    def handle(self, event: Event, *queued: Event) -> Outcome | None:
        async def handle() -> Outcome | None:
            for other in queued:
                self.run.inbox.put_nowait(other)
            if event.kind in ("exited", "lost"):  # as the orchestrator does before it queues the event
                self.run.programs.pop(event.node, None)
            return await self.supervisor._handle(event, self.child, self.tickets)  # type: ignore[arg-type]

        return asyncio.run(handle())


@pytest.fixture
def restarting(tmp_path: Path) -> _Fixture:
    return _Fixture(tmp_path, "restart")


@pytest.fixture
def continuing(tmp_path: Path) -> _Fixture:
    return _Fixture(tmp_path, "continue")


def test_each_node_is_started_with_its_shard_and_its_own_ticket(restarting: _Fixture) -> None:
    started = [(n, c.shard_index, c.shard_count, c.epoch, list(c.nodes)) for n, c in restarting.host.started]
    assert started == [("a", 0, 2, 3, ["a", "b"]), ("b", 1, 2, 3, ["a", "b"])]
    assert {c.ticket: n for n, c in restarting.host.started} == restarting.host.routes


@pytest.mark.parametrize("code", [-9, -15, int(ExitCode.PEER_LOST)])
def test_a_killed_node_program_restarts_the_run(restarting: _Fixture, code: int) -> None:
    outcome = restarting.handle(Event("exited", "b", 3, code))
    assert outcome is not None
    assert outcome.verdict == "restart"
    assert outcome.reason.startswith("node b: its program")


def test_a_node_program_that_raised_fails_the_run(restarting: _Fixture) -> None:
    outcome = restarting.handle(Event("exited", "b", 3, 1, "ValueError: no"))
    assert outcome == Outcome("failed", "node b: ValueError: no")


def test_a_failure_reports_the_progress_of_the_run(restarting: _Fixture) -> None:
    restarting.run.done, restarting.run.total, restarting.run.progress = 3, 40, {"unit": "round"}
    outcome = restarting.handle(Event("exited", "b", 3, 1, "ValueError: no (mine.py, line 7, in local_update)"))
    cause = "ValueError: no (mine.py, line 7, in local_update)"
    assert outcome == Outcome("failed", f"node b, after round 3 of 40: {cause}")
    server = restarting.handle(_server_failed(1))
    assert server == Outcome("failed", "server program, after round 3 of 40: lost b")


def test_a_lost_node_restarts_the_run(restarting: _Fixture) -> None:
    assert restarting.handle(Event("lost", "a", 3, text="missed 3 heartbeats")) == Outcome(
        "restart", "node a: missed 3 heartbeats"
    )


def test_a_killed_run_process_restarts_the_run(continuing: _Fixture) -> None:
    assert continuing.handle(Event("gone", epoch=3)) == Outcome("restart", "the run process was killed by signal 11")


@pytest.mark.parametrize(
    "event", [Event("exited", "b", 3, -9), Event("exited", "b", 3, 1, "ValueError"), Event("lost", "b", 3, text="left")]
)
def test_a_continuing_method_is_notified_of_a_lost_node_and_the_run_goes_on(continuing: _Fixture, event: Event) -> None:
    continuing.host.disconnected.add("b")
    assert continuing.handle(event) is None
    assert [(m["type"], m["node"]) for m in continuing.child.sent] == [("lost", "b")]


def test_only_the_lost_program_is_restarted_once_the_run_process_expects_it(continuing: _Fixture) -> None:
    assert continuing.handle(Event("exited", "b", 3, -9)) is None
    lost, expect = continuing.child.sent
    assert (lost["type"], lost.get("for_good", False)) == ("lost", False)
    assert (expect["type"], expect["node"], expect["epoch"]) == ("expect", "b", 4)
    assert continuing.run.epoch == 4, "the epoch is stored before it is used"
    assert len(continuing.host.started) == 2, "not started before the run process knows the ticket"
    assert continuing.handle(Event("expecting", epoch=3, details=expect)) is None
    node, command = continuing.host.started[-1]
    assert (node, command.epoch, command.shard_index, command.ticket) == ("b", 4, 1, expect["ticket"])
    assert continuing.host.routes[command.ticket] == "b"


def test_the_program_of_a_disconnected_node_is_restarted_when_it_reconnects(continuing: _Fixture) -> None:
    continuing.host.disconnected.add("b")
    assert continuing.handle(Event("lost", "b", 3, text="missed 3 heartbeats")) is None
    assert continuing.handle(Event("returned", "b")) is None
    assert [m["type"] for m in continuing.child.sent] == ["lost"], "the node is not connected"
    continuing.host.disconnected.clear()
    for _ in range(2):  # a repeated event has no effect
        assert continuing.handle(Event("returned", "b")) is None
    assert [m["type"] for m in continuing.child.sent] == ["lost", "expect"]


def test_a_node_whose_program_keeps_failing_or_cannot_succeed_is_excluded(continuing: _Fixture) -> None:
    for epoch in (4, 5):
        continuing.handle(Event("exited", "b", 3, 1, f"ValueError: no {epoch}"))
        expect = continuing.child.sent[-1]
        assert expect["epoch"] == epoch
        continuing.handle(Event("expecting", epoch=3, details=expect))
    continuing.handle(Event("exited", "b", 5, 1, "ValueError: no"))
    assert continuing.child.sent[-1]["for_good"]
    assert "restarted 2 times within an hour" in continuing.child.sent[-1]["reason"]
    continuing.handle(Event("exited", "a", 3, int(ExitCode.DATA), "no data set 'x'"))
    assert (continuing.child.sent[-1]["node"], continuing.child.sent[-1]["for_good"]) == ("a", True)
    assert continuing.handle(Event("returned", "a")) is None
    assert continuing.child.sent[-1]["type"] == "lost"


def test_a_node_is_excluded_after_the_same_error_three_times_in_a_row_without_progress(
    continuing: _Fixture,
) -> None:
    def fail(epoch: int) -> dict[str, Any]:
        continuing.handle(Event("exited", "b", epoch, 1, "ValueError: no"))
        sent: dict[str, Any] = continuing.child.sent[-1]
        if sent["type"] == "expect":
            continuing.handle(Event("expecting", epoch=3, details=sent))
        return sent

    continuing.supervisor._rejoin_policy._limit = RestartLimit(100, lambda: 0.0)
    assert [fail(3)["type"], fail(4)["type"]] == ["expect", "expect"]
    continuing.run.done += 1
    assert [fail(5)["type"], fail(6)["type"]] == ["expect", "expect"]
    last = fail(7)
    assert last["for_good"], "three times in a row"
    assert "ValueError: no" in last["reason"]


def test_the_run_process_is_notified_of_a_node_program_that_finished(restarting: _Fixture) -> None:
    assert restarting.handle(Event("exited", "a", 3, 0)) is None
    assert restarting.child.sent[0]["type"] == "lost"


def _server_failed(code: int) -> Event:
    return Event("failed", epoch=3, details={"exit_code": code, "error": "lost b", "traceback": "trace"})


def test_a_server_program_that_raised_fails_the_run_and_logs_its_traceback(restarting: _Fixture) -> None:
    assert restarting.handle(_server_failed(1)) == Outcome("failed", "server program: lost b")
    assert "trace" in (restarting.run.directory / "log.txt").read_text()


def test_after_a_lost_peer_the_error_of_that_node_decides_the_outcome(restarting: _Fixture) -> None:
    lost = int(ExitCode.PEER_LOST)
    fine, raised = Event("exited", "a", 3, 0), Event("exited", "b", 3, 1, "ValueError: no")
    assert restarting.handle(_server_failed(lost), fine, raised) == Outcome("failed", "node b: ValueError: no")


def test_after_a_lost_peer_without_an_error_of_a_node_the_run_restarts(
    restarting: _Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farshore.server.supervisor.VERDICT_SECONDS", 0.05)
    assert restarting.handle(_server_failed(int(ExitCode.PEER_LOST))) == Outcome("restart", "lost b")


def test_restarts_are_counted_over_a_sliding_hour() -> None:
    now = [0.0]
    limit, restarts = RestartLimit(2, lambda: now[0]), deque[float]()
    assert [limit.allows(restarts) for _ in range(3)] == [True, True, False]
    now[0] = 3601.0
    assert limit.allows(restarts)


def test_failures_of_programs_are_recorded_with_their_traceback(continuing: _Fixture) -> None:
    details = {"traceback": "Traceback (most recent call last):\n  here\nValueError: no"}
    continuing.handle(Event("exited", "b", 3, 1, "ValueError: no", details))
    server = {"exit_code": 1, "error": "KeyError: 'x'", "traceback": "Traceback: there"}
    continuing.handle(Event("failed", epoch=3, details=server))
    failures = [
        (f["origin"], f["error"], f["traceback"]) for f in RunDirectory(continuing.run.directory).read_failures()
    ]
    assert failures == [("b", "ValueError: no", details["traceback"]), ("run", "KeyError: 'x'", "Traceback: there")]
    assert "b:   here" in (continuing.run.directory / "log.txt").read_text()


def test_a_node_cannot_forge_log_lines_of_another_origin(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log.txt")
    log.write("b", ["fine\n10:00:00 server: finished", ""])
    lines, _ = log.read(0)
    assert [line.partition(" ")[2] for line in lines] == ["b: fine", "b: 10:00:00 server: finished", "b:"]
