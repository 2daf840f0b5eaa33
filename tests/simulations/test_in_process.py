"""The in-process engine: failures have names, nobody waits for ever, and runs continue where all programs can."""

from __future__ import annotations

import threading
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
    """Nothing to set."""


class Programs:
    """A workload of two functions."""

    name, summary, config = "programs", "", Config
    on_lost_node: Literal["restart", "continue"] = "restart"

    def __init__(self, server: Server, node: Node) -> None:
        self._server, self._node = server, node

    def server_program(self, session: ServerSession, config: BaseModel) -> dict[str, Any]:
        return self._server(session)

    def node_program(self, session: NodeSession, config: BaseModel) -> None:
        self._node(session)


def run(path: Path, server: Server, node: Node, **options: Any) -> dict[str, Any]:
    """Run it, and see to it that no thread is left."""
    before = set(threading.enumerate())
    try:
        return InProcessRun(Programs(server, node), Config(), path, NODES, **options).run()
    finally:
        assert set(threading.enumerate()) <= before  # a thread of an earlier test may end meanwhile


def gather(session: ServerSession) -> dict[str, Any]:
    """Hear from every node once, then tell all."""
    heard = {n: c.receive().fields["x"] for n, c in session.channels.items()}
    for channel in session.channels.values():
        channel.send(Message("control", fields={"x": 1}))
    return heard


def tell(session: NodeSession) -> None:
    session.channel.send(Message("control", fields={"x": session.shard[0]}))
    session.channel.receive()


def test_a_run_gives_the_servers_result_and_accounts_for_every_frame(tmp_path: Path) -> None:
    rows: list[Any] = []
    assert run(tmp_path, gather, tell, recorder=rows.append) == {"a": 0, "b": 1, "c": 2}
    # Where to begin, and then the programs' own message.
    assert sorted((r.node, r.direction) for r in rows) == sorted(2 * [(n, d) for n in NODES for d in ("up", "down")])


def test_a_failing_node_is_named_while_the_others_wait(tmp_path: Path) -> None:
    def node(session: NodeSession) -> None:
        if session.node == "b":
            raise ZeroDivisionError("by zero")
        tell(session)

    with pytest.raises(RunFailedError, match="node 'b' failed: ZeroDivisionError: by zero") as caught:
        run(tmp_path, gather, node)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_nodes_own_error_keeps_its_kind_and_cure(tmp_path: Path) -> None:
    def node(session: NodeSession) -> None:
        if session.node == "c":
            raise RefusedError("wrong fingerprint", hint="take the other model")
        tell(session)

    with pytest.raises(RefusedError, match="node 'c': wrong fingerprint – take the other model") as caught:
        run(tmp_path, gather, node)
    assert caught.value.exit_code == ExitCode.REFUSED


def test_a_node_that_fails_after_its_last_message_fails_the_run(tmp_path: Path) -> None:
    def node(session: NodeSession) -> None:
        tell(session)
        if session.node == "a":
            raise OSError("disk full")

    with pytest.raises(RunFailedError, match="node 'a' failed: OSError: disk full"):
        run(tmp_path, gather, node)


def test_a_failing_server_ends_nodes_that_wait_for_it(tmp_path: Path) -> None:
    def server(session: ServerSession) -> dict[str, Any]:
        session.channels["a"].receive()
        raise ValueError("no plan")

    with pytest.raises(ValueError, match="no plan"):
        run(tmp_path, server, tell)


def test_nodes_that_wait_for_a_server_that_is_done_are_ended(tmp_path: Path) -> None:
    lost: list[str] = []

    def node(session: NodeSession) -> None:
        try:
            tell(session)
        except PeerLostError:
            lost.append(session.node)
            raise

    assert run(tmp_path, lambda session: {"done": True}, node) == {"done": True}
    assert sorted(lost) == NODES


def test_what_the_server_said_last_still_arrives(tmp_path: Path) -> None:
    heard: list[Any] = []

    def node(session: NodeSession) -> None:
        heard.append(session.channel.receive().fields["x"])

    def server(session: ServerSession) -> dict[str, Any]:
        for channel in session.channels.values():
            channel.send(Message("control", fields={"x": 5}))
        return {}

    run(tmp_path, server, node)
    assert heard == [5, 5, 5]


@pytest.mark.parametrize("who", ["server", "b"])
def test_cancelling_ends_every_program(tmp_path: Path, who: str) -> None:
    cancelled = threading.Event()

    def step(session: Any, name: str) -> None:
        if name == who:
            cancelled.set()
            session.check_cancelled()

    def server(session: ServerSession) -> dict[str, Any]:
        step(session, "server")
        return gather(session)

    def node(session: NodeSession) -> None:
        step(session, session.node)
        tell(session)

    with pytest.raises(RunCancelledError, match="was cancelled"):
        run(tmp_path, server, node, cancelled=cancelled)


def test_the_newest_step_that_all_have_is_continued_from(tmp_path: Path) -> None:
    steps: dict[str, int | None] = {}
    kept = {"server": (3, 6), "a": (3, 6), "b": (6, 9), "c": (6, 9)}

    def first(session: Any) -> dict[str, Any]:
        name = getattr(session, "node", "server")
        for step in kept[name]:
            session.save_checkpoint(step, {"w": np.full(2, step, np.float32)}, {"who": name})
        return {}

    def second(session: Any) -> dict[str, Any]:
        name = getattr(session, "node", "server")
        steps[name] = session.resume_step
        arrays, meta = session.load_checkpoint(session.resume_step)
        assert meta == {"who": name}
        assert arrays["w"].tolist() == [6, 6]
        return {}

    def quietly(program: Callable[[Any], dict[str, Any]]) -> Node:
        return lambda session: program(session) and None

    assert run(tmp_path, first, quietly(first)) == {}
    run(tmp_path, second, quietly(second))
    assert steps == dict.fromkeys(["server", *NODES], 6)


def test_without_a_common_step_a_run_starts_afresh(tmp_path: Path) -> None:
    def save(session: Any) -> dict[str, Any]:
        session.save_checkpoint(1 if hasattr(session, "node") else 2, {"w": np.ones(1, np.float32)}, {})
        return {}

    run(tmp_path, save, lambda session: save(session) and None)
    assert run(tmp_path, lambda session: {"step": session.resume_step}, lambda session: None) == {"step": None}


def test_a_missing_data_set_names_the_node(tmp_path: Path) -> None:
    def node(session: NodeSession) -> None:
        session.data("sst2")

    with pytest.raises(DataError, match=r"node '.' has no data set called 'sst2' – give it one: --data sst2=PATH"):
        run(tmp_path, gather, node)


def test_what_a_sender_changes_afterwards_does_not_travel(tmp_path: Path) -> None:
    def node(session: NodeSession) -> None:
        array = np.zeros(4, np.float32)
        session.channel.send(Message("weights", tensors={"w": Tensor(array)}))
        array[:] = 1

    def server(session: ServerSession) -> dict[str, Any]:
        (name, message), *_ = [session.receive_any() for _ in NODES]
        return {name: message.array("w").tolist()}

    assert list(run(tmp_path, server, node).values()) == [[0, 0, 0, 0]]


def test_metrics_and_progress_reach_who_asked(tmp_path: Path) -> None:
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


def test_every_error_of_the_family_can_name_its_node(tmp_path: Path) -> None:
    def leaves(kind: type[FarshoreError]) -> list[type[FarshoreError]]:
        return [kind, *(leaf for sub in kind.__subclasses__() for leaf in leaves(sub))]

    for kind in leaves(FarshoreError):
        if issubclass(kind, PeerLostError | RunCancelledError):
            continue
        error = kind("what", "extra") if kind.__name__ == "MissingExtraError" else kind("what")  # type: ignore[call-arg]

        def node(session: NodeSession, error: FarshoreError = error) -> None:
            raise error

        with pytest.raises(kind, match=r"node '\w': "):
            run(tmp_path, gather, node)
