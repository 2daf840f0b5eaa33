"""The in-process engine: errors name the node, no program blocks forever, runs resume from the newest common step."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from pydantic import BaseModel

from farshore.core.errors import (
    DataError,
    ExitCode,
    FarshoreError,
    PeerLostError,
    RefusedError,
    RunCancelledError,
    RunFailedError,
)
from farshore.core.message import Message, Tensor
from farshore.core.session import NodeSession, ServerSession
from farshore.simulations.in_process import InProcessRun

Server = Callable[[ServerSession], dict[str, Any]]
Node = Callable[[NodeSession], None]
NODES = ["a", "b", "c"]


class Config(BaseModel):
    """A configuration without settings."""


class Programs:
    """A workload made of two functions."""

    name, summary, config = "programs", "", Config
    on_lost_node: Literal["restart", "continue"] = "restart"

    def __init__(self, server: Server, node: Node) -> None:
        self._server, self._node = server, node

    def server_program(self, session: ServerSession, config: BaseModel) -> dict[str, Any]:
        return self._server(session)

    def node_program(self, session: NodeSession, config: BaseModel) -> None:
        self._node(session)


def run(path: Path, server: Server, node: Node, **options: Any) -> dict[str, Any]:
    """Run the programs and check that no thread remains."""
    before = set(threading.enumerate())
    try:
        return InProcessRun(Programs(server, node), Config(), path, NODES, **options).run()
    finally:
        assert set(threading.enumerate()) <= before  # subset: a thread of an earlier test may have ended


def collect(session: ServerSession) -> dict[str, Any]:
    """Receive one message from each node, then reply to all."""
    received = {n: c.receive().fields["x"] for n, c in session.channels.items()}
    for channel in session.channels.values():
        channel.send(Message("control", fields={"x": 1}))
    return received


def report(session: NodeSession) -> None:
    session.channel.send(Message("control", fields={"x": session.shard[0]}))
    session.channel.receive()


def test_run_returns_the_server_result_and_records_every_frame(tmp_path: Path) -> None:
    rows: list[Any] = []
    assert run(tmp_path, collect, report, recorder=rows.append) == {"a": 0, "b": 1, "c": 2}
    # Per node and direction: a handshake message and the program's own message.
    assert sorted((r.node, r.direction) for r in rows) == sorted(2 * [(n, d) for n in NODES for d in ("up", "down")])


def test_error_of_a_node_names_it_while_others_wait(tmp_path: Path) -> None:
    def node(session: NodeSession) -> None:
        if session.node == "b":
            raise ZeroDivisionError("by zero")
        report(session)

    with pytest.raises(RunFailedError, match="node 'b' failed: ZeroDivisionError: by zero") as caught:
        run(tmp_path, collect, node)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_farshore_error_of_a_node_keeps_its_class_and_hint(tmp_path: Path) -> None:
    def node(session: NodeSession) -> None:
        if session.node == "c":
            raise RefusedError("wrong fingerprint", hint="take the other model")
        report(session)

    with pytest.raises(RefusedError, match="node 'c': wrong fingerprint – take the other model") as caught:
        run(tmp_path, collect, node)
    assert caught.value.exit_code == ExitCode.REFUSED


def test_node_failing_after_its_last_message_fails_the_run(tmp_path: Path) -> None:
    def node(session: NodeSession) -> None:
        report(session)
        if session.node == "a":
            raise OSError("disk full")

    with pytest.raises(RunFailedError, match="node 'a' failed: OSError: disk full"):
        run(tmp_path, collect, node)


def test_a_failing_node_unblocks_a_server_that_waits_for_nodes(tmp_path: Path) -> None:
    def server(session: Any) -> dict[str, Any]:
        while any(channel.inbox.error is None for channel in session.channels.values()):
            time.sleep(0.01)
        session.readmit(1)
        raise AssertionError("no node can come")

    def node(session: NodeSession) -> None:
        raise OSError("disk full")

    with pytest.raises(RunFailedError, match="failed: OSError: disk full"):
        run(tmp_path, server, node)


def test_failing_server_unblocks_waiting_nodes(tmp_path: Path) -> None:
    def server(session: ServerSession) -> dict[str, Any]:
        session.channels["a"].receive()
        raise ValueError("no plan")

    with pytest.raises(ValueError, match="no plan"):
        run(tmp_path, server, report)


def test_finished_server_unblocks_waiting_nodes(tmp_path: Path) -> None:
    lost: list[str] = []

    def node(session: NodeSession) -> None:
        try:
            report(session)
        except PeerLostError:
            lost.append(session.node)
            raise

    assert run(tmp_path, lambda session: {"done": True}, node) == {"done": True}
    assert sorted(lost) == NODES


def test_last_messages_of_the_server_are_delivered(tmp_path: Path) -> None:
    received: list[Any] = []

    def node(session: NodeSession) -> None:
        received.append(session.channel.receive().fields["x"])

    def server(session: ServerSession) -> dict[str, Any]:
        for channel in session.channels.values():
            channel.send(Message("control", fields={"x": 5}))
        return {}

    run(tmp_path, server, node)
    assert received == [5, 5, 5]


@pytest.mark.parametrize("program", ["server", "b"])
def test_cancelling_ends_all_programs(tmp_path: Path, program: str) -> None:
    cancelled = threading.Event()

    def step(session: Any, name: str) -> None:
        if name == program:
            cancelled.set()
            session.check_cancelled()

    def server(session: ServerSession) -> dict[str, Any]:
        step(session, "server")
        return collect(session)

    def node(session: NodeSession) -> None:
        step(session, session.node)
        report(session)

    with pytest.raises(RunCancelledError, match="was cancelled"):
        run(tmp_path, server, node, cancelled=cancelled)


def test_run_resumes_from_the_newest_common_step(tmp_path: Path) -> None:
    steps: dict[str, int | None] = {}
    saved_steps = {"server": (3, 6), "a": (3, 6), "b": (6, 9), "c": (6, 9)}

    def first(session: Any) -> dict[str, Any]:
        name = getattr(session, "node", "server")
        for step in saved_steps[name]:
            session.save_checkpoint(step, {"w": np.full(2, step, np.float32)}, {"who": name})
        return {}

    def second(session: Any) -> dict[str, Any]:
        name = getattr(session, "node", "server")
        steps[name] = session.resume_step
        arrays, meta = session.load_checkpoint(session.resume_step)
        assert meta == {"who": name}
        assert arrays["w"].tolist() == [6, 6]
        return {}

    def as_node_program(program: Callable[[Any], dict[str, Any]]) -> Node:
        return lambda session: program(session) and None

    assert run(tmp_path, first, as_node_program(first)) == {}
    run(tmp_path, second, as_node_program(second))
    assert steps == dict.fromkeys(["server", *NODES], 6)


def test_run_without_a_common_step_starts_from_scratch(tmp_path: Path) -> None:
    def save(session: Any) -> dict[str, Any]:
        session.save_checkpoint(1 if hasattr(session, "node") else 2, {"w": np.ones(1, np.float32)}, {})
        return {}

    run(tmp_path, save, lambda session: save(session) and None)
    assert run(tmp_path, lambda session: {"step": session.resume_step}, lambda session: None) == {"step": None}


def test_missing_data_set_error_names_the_node(tmp_path: Path) -> None:
    def node(session: NodeSession) -> None:
        session.data("sst2")

    with pytest.raises(DataError, match=r"node '.' has no data set called 'sst2' – pass its path: --data sst2=PATH"):
        run(tmp_path, collect, node)


def test_changes_after_send_do_not_reach_the_receiver(tmp_path: Path) -> None:
    def node(session: NodeSession) -> None:
        array = np.zeros(4, np.float32)
        session.channel.send(Message("weights", tensors={"w": Tensor(array)}))
        array[:] = 1

    def server(session: ServerSession) -> dict[str, Any]:
        (name, message), *_ = [session.receive_any() for _ in NODES]
        return {name: message.array("w").tolist()}

    assert list(run(tmp_path, server, node).values()) == [[0, 0, 0, 0]]


def test_metrics_and_progress_reach_the_callbacks(tmp_path: Path) -> None:
    metrics: list[Any] = []
    progress: list[Any] = []

    def server(session: ServerSession) -> dict[str, Any]:
        session.metrics(3, loss=0.5)
        session.progress(1, 2, loss=0.5)
        return {}

    run(
        tmp_path,
        server,
        lambda session: None,
        on_metrics=lambda *a: metrics.append(a),
        on_progress=lambda *a: progress.append(a),
    )
    assert metrics == [(3, {"loss": 0.5})]
    assert progress == [(1, 2, {"loss": 0.5})]


def test_every_farshore_error_class_can_name_its_node(tmp_path: Path) -> None:
    def leaves(kind: type[FarshoreError]) -> list[type[FarshoreError]]:
        return [kind, *(leaf for sub in kind.__subclasses__() for leaf in leaves(sub))]

    for kind in leaves(FarshoreError):
        if issubclass(kind, PeerLostError | RunCancelledError):
            continue
        error = kind("what", "extra") if kind.__name__ == "MissingExtraError" else kind("what")  # type: ignore[call-arg]

        def node(session: NodeSession, error: FarshoreError = error) -> None:
            raise error

        with pytest.raises(kind, match=r"node '\w': "):
            run(tmp_path, collect, node)
