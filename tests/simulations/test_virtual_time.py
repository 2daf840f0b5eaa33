"""Virtual time of a run's programs: transfers, costs, waits and deadlines, against times computed by hand."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from pydantic import BaseModel

from farshore.core.clock import clock_of
from farshore.core.errors import RunFailedError
from farshore.core.message import Message, Tensor
from farshore.core.seeds import Seed
from farshore.core.session import NodeSession, ServerSession
from farshore.core.transfer import Transfer
from farshore.simulations.clock import Devices
from farshore.simulations.in_process import InProcessRun
from farshore.simulations.virtual_network import VirtualNetwork

pytestmark = pytest.mark.timeout(60)

Server = Callable[[ServerSession], dict[str, Any]]
Node = Callable[[NodeSession], None]
LATENCY = 0.05
UP, DOWN = 8.0, 16.0  # Mbit/s: a byte takes 1 and 0.5 microseconds


class Config(BaseModel):
    """A configuration without settings."""


class Programs:
    """A workload made of two functions."""

    name, summary, config = "programs", "", Config
    on_lost_node: Literal["restart", "continue"] = "restart"
    uses_torch = False

    def __init__(self, server: Server, node: Node) -> None:
        self._server, self._node = server, node

    def server_program(self, session: ServerSession, config: BaseModel) -> dict[str, Any]:
        return self._server(session)

    def node_program(self, session: NodeSession, config: BaseModel) -> None:
        self._node(session)


class Timed:
    """A run in virtual time, and what it recorded."""

    def __init__(self, path: Path, server: Server, node: Node, nodes: tuple[str, ...] = ("a",), **devices: Any) -> None:
        link = {"up_mbps": UP, "down_mbps": DOWN, "latency_ms": 1000 * LATENCY}
        groups = devices.pop("groups", [{"profile": {"link": link}}])
        table = Devices.model_validate({"seconds_per_step": 1e-9, "population": {"groups": groups}, **devices})
        self.network = VirtualNetwork(table, nodes, Seed(0))
        self.rows: list[Transfer] = []
        run = InProcessRun(
            Programs(server, node), Config(), path, nodes, recorder=self.rows.append, network=self.network
        )
        self.result = run.run()

    def size(self, kind: str, direction: str = "up") -> int:
        return next(row.frame_bytes for row in self.rows if (row.kind, row.direction) == (kind, direction))

    def handshake(self) -> float:
        """Duration of the handshake, after which the programs begin."""
        hello, begin = (next(row.frame_bytes for row in self.rows if row.direction == way) for way in ("up", "down"))
        return hello * 1e-6 + LATENCY + begin * 0.5e-6 + LATENCY

    def node(self, name: str) -> Mapping[str, float]:
        found: Mapping[str, float] = self.network.summary()["nodes"][name]
        return found


def block(kind: str, size: int, **more: Any) -> Message:
    return Message(kind, tensors={"x": Tensor(np.zeros(size, np.uint8))}, **more)


def test_an_exchange_takes_latency_and_bytes_by_bandwidth_each_way(tmp_path: Path) -> None:
    def server(session: ServerSession) -> dict[str, Any]:
        session.channels["a"].send(block("question", 100_000))
        session.channels["a"].receive()
        return {"at": clock_of(session)()}

    def node(session: NodeSession) -> None:
        session.channel.receive()
        session.channel.send(block("answer", 300_000))

    run = Timed(tmp_path, server, node)
    # The server sends its question while its part of the handshake is still on the link.
    hello, begin = (next(row.frame_bytes for row in run.rows if row.direction == way) for way in ("up", "down"))
    asked = hello * 1e-6 + LATENCY + (begin + run.size("question", "down")) * 0.5e-6 + LATENCY
    answered = asked + run.size("answer") * 1e-6 + LATENCY
    assert run.result["at"] == pytest.approx(answered, abs=1e-7)
    assert run.network.summary()["seconds"] == pytest.approx(answered, abs=1e-7)
    assert run.node("a")["seconds"] == pytest.approx(asked, abs=1e-7)
    assert run.node("a")["uplink"] == pytest.approx((hello + run.size("answer")) * 1e-6, abs=1e-7)
    assert run.node("a")["waiting"] == pytest.approx(asked, abs=1e-7)
    assert run.node("a")["computing"] < 1e-7


def test_two_messages_in_a_row_occupy_the_link_one_after_the_other(tmp_path: Path) -> None:
    arrivals: list[float] = []

    def server(session: ServerSession) -> dict[str, Any]:
        for _ in range(2):
            session.channels["a"].receive()
            arrivals.append(clock_of(session)())
        return {}

    def node(session: NodeSession) -> None:
        session.channel.send(block("first", 500_000))
        session.channel.send(block("second", 500_000))

    run = Timed(tmp_path, server, node)
    first = run.handshake() + run.size("first") * 1e-6 + LATENCY
    assert arrivals == pytest.approx([first, first + run.size("second") * 1e-6], abs=1e-7)


def test_the_two_directions_of_a_link_do_not_hinder_each_other(tmp_path: Path) -> None:
    def server(session: ServerSession) -> dict[str, Any]:
        session.channels["a"].send(block("big", 10_000_000))
        session.channels["a"].receive()
        return {"at": clock_of(session)()}

    run = Timed(tmp_path, server, lambda session: session.channel.send(block("small", 10)))
    assert run.result["at"] == pytest.approx(run.handshake() + run.size("small") * 1e-6 + LATENCY, abs=1e-7)


def test_computation_costs_what_the_table_says_times_the_compute_factor(tmp_path: Path) -> None:
    def server(session: ServerSession) -> dict[str, Any]:
        for _ in range(3):
            session.channels["a"].receive()
        session.channels["a"].send(Message("reply"))
        return {"at": clock_of(session)()}

    def node(session: NodeSession) -> None:
        for step in (0, 0, 1):  # two messages of one step, one of another
            session.channel.send(Message("answer", step=step))
        session.channel.receive()

    run = Timed(
        tmp_path,
        server,
        node,
        groups=[{"profile": {"compute_factor": 4}}],
        seconds_per_step=3,
        seconds_per_message={"answer": 0.5},
        server_seconds_per_message={"reply": 7},
    )
    node_seconds = 4 * (2 * 3 + 3 * 0.5)
    assert run.node("a")["computing"] == pytest.approx(node_seconds)
    assert run.result["at"] == pytest.approx(node_seconds + 7)
    assert run.network.summary()["server"]["computing"] == 7


@pytest.mark.parametrize("slow", ["a", "b"])
def test_messages_arrive_in_virtual_order_however_fast_the_threads_are(tmp_path: Path, slow: str) -> None:
    def server(session: ServerSession) -> dict[str, Any]:
        return {"order": [session.receive_any()[0] for _ in range(4)]}

    def node(session: NodeSession) -> None:
        time.sleep(0.2 if session.node == slow else 0.0)
        for step in range(2):
            session.channel.send(Message("quick" if session.node == "a" else "late", step=step))

    costs = {"quick": 1.0, "late": 1.5}
    assert Timed(tmp_path, server, node, ("a", "b"), seconds_per_message=costs).result["order"] == ["a", "b", "a", "b"]


def test_a_timeout_is_in_virtual_seconds(tmp_path: Path) -> None:
    def server(session: ServerSession) -> dict[str, Any]:
        begun, missed = clock_of(session)(), 0
        for seconds in (1.0, 1.0, 1000.0):
            try:
                session.receive_any(timeout=seconds)
            except TimeoutError:
                missed += 1
        return {"missed": missed, "waited": clock_of(session)() - begun}

    def node(session: NodeSession) -> None:
        time.sleep(0.1)  # the thread being late does not matter
        session.channel.send(Message("answer"))

    run = Timed(tmp_path, server, node, groups=[{"profile": {}}], seconds_per_message={"answer": 2.5})
    assert run.result == {"missed": 2, "waited": pytest.approx(2.5)}


def test_a_poll_sees_what_has_arrived_at_the_time_of_the_program(tmp_path: Path) -> None:
    polls: list[bool] = []

    def server(session: ServerSession) -> dict[str, Any]:
        session.channels["a"].send(Message("news"))
        for _ in range(5):
            session.channels["a"].receive()
        return {}

    def node(session: NodeSession) -> None:
        for step in range(4):
            session.channel.send(Message("work", step=step))  # half a second each
            try:
                session.channel.receive(0.0)
                polls.append(True)
            except TimeoutError:
                polls.append(False)
        session.channel.send(Message("end"))

    Timed(
        tmp_path,
        server,
        node,
        groups=[{"profile": {}}],
        seconds_per_message={"work": 0.5},
        server_seconds_per_message={"news": 1.2},
    )
    assert polls == [False, False, True, False]


def test_a_full_window_holds_the_sender_until_messages_are_taken(tmp_path: Path) -> None:
    sent: list[float] = []

    def server(session: ServerSession) -> dict[str, Any]:
        channel = session.channels["a"]
        for _ in range(3):
            channel.receive()
            channel.send(Message("worked"))  # takes ten seconds
        return {}

    def node(session: NodeSession) -> None:
        for _ in range(3):
            session.channel.send(block("bulk", 20 << 20))  # one fits into the window
            sent.append(clock_of(session)())

    run = Timed(tmp_path, server, node, groups=[{"profile": {}}], server_seconds_per_message={"worked": 10})
    assert sent == pytest.approx([0.0, 0.0, 10.0], abs=1e-6)
    assert run.network.summary()["server"]["computing"] == 30


def test_programs_that_wait_for_each_other_are_reported(tmp_path: Path) -> None:
    with pytest.raises(RunFailedError, match="wait for each other"):
        Timed(
            tmp_path,
            lambda session: {"message": session.receive_any()},
            lambda session: session.channel.receive() and None,
        )


def test_energy_is_that_of_computation_and_bytes(tmp_path: Path) -> None:
    def server(session: ServerSession) -> dict[str, Any]:
        session.channels["a"].receive()
        return {}

    profile = {"compute_watts": 5, "link": {"up_joule_per_mb": 2, "down_joule_per_mb": 1}}
    run = Timed(
        tmp_path,
        server,
        lambda session: session.channel.send(block("answer", 1_000_000)),
        groups=[{"profile": profile}],
        seconds_per_message={"answer": 3},
    )
    up, down = (sum(row.frame_bytes for row in run.rows if row.direction == way) for way in ("up", "down"))
    assert run.node("a")["joule"] == pytest.approx(15 + 2e-6 * up + 1e-6 * down)
