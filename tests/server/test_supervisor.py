"""What a supervisor makes of the events of an epoch, for methods that restart and for methods that go on."""

from __future__ import annotations

import asyncio
from collections import deque
from pathlib import Path
from typing import Any

import pytest

from farshore.core.errors import ExitCode
from farshore.proto import control_pb2 as pb
from farshore.runs.directory import RunDirectory
from farshore.server.restart_limit import RestartLimit
from farshore.server.run import Event, Run
from farshore.server.run_log import RunLog
from farshore.server.supervisor import Outcome, Supervisor


class _Around:
    def __init__(self) -> None:
        self.started: list[tuple[str, pb.StartProgram]] = []
        self.away: set[str] = set()
        self.doors: dict[str, str] = {}

    async def assign(self, run: Run) -> None:
        run.nodes = ("a", "b")

    def launch_parameters(self, run: Run) -> dict[str, Any]:
        return {}

    def start_program(self, run: Run, node: str, command: pb.StartProgram) -> bool:
        self.started.append((node, command))
        run.programs[node] = command.epoch
        return True

    def is_connected(self, node: str) -> bool:
        return node not in self.away

    def stop_programs(self, run: Run, reason: str) -> None: ...

    def open_door(self, ticket: str, run: Run, node: str, socket: Path) -> None:
        self.doors[ticket] = node

    def close_doors(self, run: Run) -> None: ...

    def data_dialled(self, run_id: str, node: str, port: int, peer: str) -> None: ...

    def count_sockets(self, run: Run) -> None: ...

    def save(self, run: Run) -> None: ...


class _Child:
    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []

    def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)

    async def wait(self) -> int:
        return -11


class _Stage:
    def __init__(self, folder: Path, on_lost_node: str) -> None:
        self.around, self.child = _Around(), _Child()
        self.run = Run("r", "m", "{}", 1, folder, RunLog(folder / "log.txt"), nodes=("a", "b"), epoch=3)
        self.supervisor = Supervisor(self.run, self.around, 2)
        self.tickets = {"ticket-a": "a", "ticket-b": "b"}
        assert self.look(Event("ready", epoch=3, details={"port": 0, "on_lost_node": on_lost_node})) is None

    def look(self, event: Event, *behind: Event) -> Outcome | None:
        async def consider() -> Outcome | None:
            for other in behind:
                self.run.inbox.put_nowait(other)
            if event.kind in ("exited", "lost"):  # the orchestrator forgets the program before it tells
                self.run.programs.pop(event.node, None)
            return await self.supervisor._consider(event, self.child, self.tickets)  # type: ignore[arg-type]

        return asyncio.run(consider())


@pytest.fixture
def restarting(tmp_path: Path) -> _Stage:
    return _Stage(tmp_path, "restart")


@pytest.fixture
def continuing(tmp_path: Path) -> _Stage:
    return _Stage(tmp_path, "continue")


def test_each_node_is_started_with_its_place_in_the_cohort_and_a_ticket_of_its_own(restarting: _Stage) -> None:
    started = [(n, c.shard_index, c.shard_count, c.epoch, list(c.nodes)) for n, c in restarting.around.started]
    assert started == [("a", 0, 2, 3, ["a", "b"]), ("b", 1, 2, 3, ["a", "b"])]
    assert {c.ticket: n for n, c in restarting.around.started} == restarting.around.doors


@pytest.mark.parametrize("code", [-9, -15, int(ExitCode.PEER_LOST)])
def test_a_program_that_died_restarts_the_run(restarting: _Stage, code: int) -> None:
    outcome = restarting.look(Event("exited", "b", 3, code))
    assert outcome is not None
    assert outcome.verdict == "restart"
    assert outcome.reason.startswith("node b: its program")


def test_a_program_that_raised_fails_the_run(restarting: _Stage) -> None:
    outcome = restarting.look(Event("exited", "b", 3, 1, "ValueError: no"))
    assert outcome == Outcome("failed", "node b: ValueError: no")


def test_a_failure_says_how_far_the_run_was(restarting: _Stage) -> None:
    restarting.run.done, restarting.run.total, restarting.run.progress = 3, 40, {"unit": "round"}
    outcome = restarting.look(Event("exited", "b", 3, 1, "ValueError: no (mine.py, line 7, in local_update)"))
    cause = "ValueError: no (mine.py, line 7, in local_update)"
    assert outcome == Outcome("failed", f"node b, after round 3 of 40: {cause}")
    server = restarting.look(_server_failed(1))
    assert server == Outcome("failed", "server program, after round 3 of 40: b is gone")


def test_a_lost_node_restarts_the_run(restarting: _Stage) -> None:
    assert restarting.look(Event("lost", "a", 3, text="missed 3 heartbeats")) == Outcome(
        "restart", "node a: missed 3 heartbeats"
    )


def test_a_killed_run_process_restarts_the_run(continuing: _Stage) -> None:
    assert continuing.look(Event("gone", epoch=3)) == Outcome("restart", "the run process was killed by signal 11")


@pytest.mark.parametrize(
    "event", [Event("exited", "b", 3, -9), Event("exited", "b", 3, 1, "ValueError"), Event("lost", "b", 3, text="left")]
)
def test_a_method_that_goes_on_is_told_of_the_loss_and_nothing_ends(continuing: _Stage, event: Event) -> None:
    continuing.around.away.add("b")
    assert continuing.look(event) is None
    assert [(m["type"], m["node"]) for m in continuing.child.sent] == [("lost", "b")]


def test_a_lost_program_alone_is_started_again_once_the_run_process_expects_it(continuing: _Stage) -> None:
    assert continuing.look(Event("exited", "b", 3, -9)) is None
    lost, expect = continuing.child.sent
    assert (lost["type"], lost.get("for_good", False)) == ("lost", False)
    assert (expect["type"], expect["node"], expect["epoch"]) == ("expect", "b", 4)
    assert continuing.run.epoch == 4, "stored before it is used"
    assert len(continuing.around.started) == 2, "not before the run process knows the ticket"
    assert continuing.look(Event("expecting", epoch=3, details=expect)) is None
    node, command = continuing.around.started[-1]
    assert (node, command.epoch, command.shard_index, command.ticket) == ("b", 4, 1, expect["ticket"])
    assert continuing.around.doors[command.ticket] == "b"


def test_a_node_that_was_away_is_started_again_when_it_is_back(continuing: _Stage) -> None:
    continuing.around.away.add("b")
    assert continuing.look(Event("lost", "b", 3, text="missed 3 heartbeats")) is None
    assert continuing.look(Event("returned", "b")) is None
    assert [m["type"] for m in continuing.child.sent] == ["lost"], "it is not connected"
    continuing.around.away.clear()
    for _ in range(2):  # said twice, done once
        assert continuing.look(Event("returned", "b")) is None
    assert [m["type"] for m in continuing.child.sent] == ["lost", "expect"]


def test_a_program_that_keeps_dying_or_cannot_work_stays_out(continuing: _Stage) -> None:
    for epoch in (4, 5):
        continuing.look(Event("exited", "b", 3, 1, f"ValueError: no {epoch}"))
        expect = continuing.child.sent[-1]
        assert expect["epoch"] == epoch
        continuing.look(Event("expecting", epoch=3, details=expect))
    continuing.look(Event("exited", "b", 5, 1, "ValueError: no"))
    assert continuing.child.sent[-1]["for_good"]
    assert "started again 2 times within an hour" in continuing.child.sent[-1]["reason"]
    continuing.look(Event("exited", "a", 3, int(ExitCode.DATA), "no data set 'x'"))
    assert (continuing.child.sent[-1]["node"], continuing.child.sent[-1]["for_good"]) == ("a", True)
    assert continuing.look(Event("returned", "a")) is None
    assert continuing.child.sent[-1]["type"] == "lost"


def test_a_program_that_dies_of_one_error_again_and_again_stays_out_unless_something_was_done_in_between(
    continuing: _Stage,
) -> None:
    def dies(epoch: int) -> dict[str, Any]:
        continuing.look(Event("exited", "b", epoch, 1, "ValueError: no"))
        said: dict[str, Any] = continuing.child.sent[-1]
        if said["type"] == "expect":
            continuing.look(Event("expecting", epoch=3, details=said))
        return said

    continuing.supervisor._comebacks._limit = RestartLimit(100, lambda: 0.0)
    assert [dies(3)["type"], dies(4)["type"]] == ["expect", "expect"]
    continuing.run.done += 1
    assert [dies(5)["type"], dies(6)["type"]] == ["expect", "expect"]
    last = dies(7)
    assert last["for_good"], "three times in a row"
    assert "ValueError: no" in last["reason"]


def test_whoever_waits_for_a_program_that_ended_well_is_told(restarting: _Stage) -> None:
    assert restarting.look(Event("exited", "a", 3, 0)) is None
    assert restarting.child.sent[0]["type"] == "lost"


def _server_failed(code: int) -> Event:
    return Event("failed", epoch=3, details={"exit_code": code, "error": "b is gone", "traceback": "trace"})


def test_a_server_program_that_raised_fails_the_run_with_its_traceback_in_the_log(restarting: _Stage) -> None:
    assert restarting.look(_server_failed(1)) == Outcome("failed", "server program: b is gone")
    assert "trace" in (restarting.run.directory / "log.txt").read_text()


def test_a_server_program_that_lost_its_peer_leaves_the_verdict_to_that_node(restarting: _Stage) -> None:
    lost = int(ExitCode.PEER_LOST)
    fine, raised = Event("exited", "a", 3, 0), Event("exited", "b", 3, 1, "ValueError: no")
    assert restarting.look(_server_failed(lost), fine, raised) == Outcome("failed", "node b: ValueError: no")


def test_without_such_a_verdict_the_run_restarts(restarting: _Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("farshore.server.supervisor.VERDICT_SECONDS", 0.05)
    assert restarting.look(_server_failed(int(ExitCode.PEER_LOST))) == Outcome("restart", "b is gone")


def test_restarts_are_counted_over_a_sliding_hour() -> None:
    now = [0.0]
    limit, restarts = RestartLimit(2, lambda: now[0]), deque[float]()
    assert [limit.allows(restarts) for _ in range(3)] == [True, True, False]
    now[0] = 3601.0
    assert limit.allows(restarts)


def test_what_programs_died_of_is_kept_with_its_traceback(continuing: _Stage) -> None:
    details = {"traceback": "Traceback (most recent call last):\n  here\nValueError: no"}
    continuing.look(Event("exited", "b", 3, 1, "ValueError: no", details))
    server = {"exit_code": 1, "error": "KeyError: 'x'", "traceback": "Traceback: there"}
    continuing.look(Event("failed", epoch=3, details=server))
    told = [(f["origin"], f["error"], f["traceback"]) for f in RunDirectory(continuing.run.directory).read_failures()]
    assert told == [("b", "ValueError: no", details["traceback"]), ("run", "KeyError: 'x'", "Traceback: there")]
    assert "b:   here" in (continuing.run.directory / "log.txt").read_text()


def test_a_node_cannot_write_a_line_of_another_origin(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log.txt")
    log.write("b", ["fine\n10:00:00 server: finished", ""])
    lines, _ = log.read(0)
    assert [line.partition(" ")[2] for line in lines] == ["b: fine", "b: 10:00:00 server: finished", "b:"]
