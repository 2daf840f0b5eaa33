"""A node that floods its control stream is slowed down, then dismissed; the server's event loop goes on."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from farshore.client.admin import AdminClient
from farshore.client.agent import AgentOptions
from farshore.core.errors import RefusedError
from farshore.core.token_bucket import TokenBucket
from farshore.proto import control_pb2 as pb
from farshore.server.stream_budget import DISMISS_SECONDS, StreamBudget

sys.path.insert(0, str(Path(__file__).parent))
from raw_node import RawNode

_LINE = pb.NodeEvent(log=pb.LogLines(run_id="r", lines=["a"]))


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_refills_up_to_its_burst() -> None:
    clock = Clock()
    bucket = TokenBucket(10.0, 5.0, clock)
    assert bucket.spend(5) == 0
    assert bucket.spend(10) == pytest.approx(1.0)
    clock.now += 100
    assert bucket.spend(5) == 0
    assert bucket.spend(1) == pytest.approx(0.1)


def test_a_node_that_stays_over_its_budget_is_dismissed_with_the_reason() -> None:
    clock = Clock()
    budget = StreamBudget("evil", clock)
    started = clock.now

    def flood() -> None:
        while clock.now < started + 100:
            clock.now += budget.spend(_LINE)

    with pytest.raises(RefusedError, match="node evil sent more than 100 messages"):
        flood()
    assert clock.now - started > DISMISS_SECONDS


def test_lines_and_bytes_of_one_message_count() -> None:
    clock = Clock()
    many = pb.NodeEvent(log=pb.LogLines(lines=["a"] * 500_000))
    budget = StreamBudget("n", clock)
    assert [budget.spend(many) > 0 for _ in range(5)] == [False, False, False, False, True]
    big = pb.NodeEvent(log=pb.LogLines(lines=["a" * (7 << 20)]))
    budget = StreamBudget("n", clock)
    assert [budget.spend(big) > 0 for _ in range(4)] == [False, False, True, True]


def test_a_node_that_pauses_is_never_dismissed() -> None:
    clock = Clock()
    budget = StreamBudget("busy", clock)
    for _ in range(20):
        for _ in range(1200):
            clock.now += budget.spend(_LINE)
        clock.now += 5.0


#: A server that writes the CPU time that its event loop spent between two of its timers, in seconds.
_SERVER = """
import asyncio, sys, time
from pathlib import Path
from farshore.server.api import ServeOptions, serve

home = Path(sys.argv[1])

async def sample():
    with (home / "stalls").open("a") as file:
        while True:
            cpu, wall = time.thread_time(), time.monotonic()
            await asyncio.sleep(0.01)
            file.write(f"{time.thread_time() - cpu:.4f} {time.monotonic() - wall - 0.01:.4f}\\n")
            file.flush()

def ready(_):
    global task
    task = asyncio.get_running_loop().create_task(sample())

serve(ServeOptions(home=home, port=0, insecure=True, heartbeat_seconds=1.0), on_ready=ready)
"""


@dataclass
class SampledServer:
    home: Path
    folder: Path

    def admin(self) -> AdminClient:
        return AdminClient.local(self.home)

    def agent_options(self, name: str, **more: Any) -> AgentOptions:
        with self.admin() as admin:
            token = admin.create_token(valid_seconds=600).token
            return AgentOptions(address=admin.address, name=name, home=self.folder / name, token=token, **more)

    def stalls(self) -> list[tuple[float, float]]:
        """CPU and wall seconds between timers of the event loop."""
        lines = (self.home / "stalls").read_text().splitlines()[:-1]
        return [(float(cpu), float(wall)) for cpu, wall in (line.split() for line in lines)]


@pytest.fixture
def sampled(tmp_path: Path, until: Any) -> Iterator[SampledServer]:
    home = tmp_path / "home"
    process = subprocess.Popen([sys.executable, "-P", "-c", _SERVER, str(home)], env=dict(os.environ))
    try:
        until((home / "stalls").exists, 60)
        yield SampledServer(home, tmp_path)
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.timeout(180)
def test_a_hostile_node_neither_stalls_the_event_loop_nor_stops_admin_calls(sampled: SampledServer) -> None:
    time.sleep(3)
    idle = len(sampled.stalls())
    with RawNode(sampled, "evil") as evil, sampled.admin() as admin:
        run_id = admin.submit("ping", {"rounds": 1}, nodes=["evil"]).id
        assert next(evil.commands).start.run_id == run_id
        many = pb.NodeEvent(log=pb.LogLines(run_id=run_id, lines=["a"] * 1_000_000))
        evil.send(many)
        one = pb.NodeEvent(log=pb.LogLines(run_id=run_id, lines=["b"]))
        answered = 0
        dismissed = ""
        end = time.monotonic() + 90
        while time.monotonic() < end and not dismissed:
            _flood(evil, one, seconds=1.0)
            assert {run.id for run in admin.runs()} == {run_id}
            answered += 1
            if admin.nodes()[0].state == "lost":
                dismissed = admin.nodes()[0].reason
        assert "dismissed: node evil sent more than" in dismissed
        assert answered > 2
        goodbye = [c.goodbye.reason for c in _rest(evil.commands) if c.WhichOneof("command") == "goodbye"]
        assert goodbye
        assert "sent more than" in goodbye[0]
        log = Path(admin.run(run_id).directory) / "log.txt"
        assert log.stat().st_size < 5_000_000
    stalls = sampled.stalls()
    assert len(stalls) > idle > 50
    # CPU seconds of the loop's thread do not depend on how busy the machine is.
    longest = max(cpu for cpu, _ in stalls[idle:])
    assert longest < 0.1, json.dumps({"longest": longest, "idle": max(cpu for cpu, _ in stalls[:idle])})


def _flood(node: RawNode, event: pb.NodeEvent, seconds: float) -> None:
    end = time.monotonic() + seconds
    with contextlib.suppress(queue.Full):  # back-pressure: the server does not read
        while time.monotonic() < end:
            node.send(event, timeout=0.5)


def _rest(commands: Any) -> Iterator[pb.NodeCommand]:
    try:
        yield from commands
    except grpc.RpcError:
        return
