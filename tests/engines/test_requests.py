"""Requests distinguish answers, losses, faults, late answers, silence and full channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from farshore.core.errors import PeerLostError, RunCancelledError, WireError
from farshore.core.message import Message, Tensor
from farshore.core.nodes import NodeInfo
from farshore.engines.requests import Answer, Failure, Requests, deadline, receive, send
from farshore.wire.cohort import Cohort
from farshore.wire.memory import pair

NAMES = ("a", "b", "c")


class Session:
    """The part of a server session that requests use, over in-memory channels with a window of 1,000 bytes."""

    def __init__(self) -> None:
        ends = {name: pair(name, window_bytes=1000) for name in NAMES}
        self.nodes = {name: node for name, (_, node) in ends.items()}
        self.cohort = Cohort({n: server for n, (server, _) in ends.items()}, {n: NodeInfo(n) for n in NAMES})
        self.channels = self.cohort.channels
        self.faults: list[Exception] = []

    def receive_any(self, nodes: Sequence[str], timeout: float | None = None) -> Any:
        if self.faults:
            raise self.faults.pop()
        return self.cohort.receive(nodes, timeout)

    def dismiss(self, node: str, reason: str) -> None:
        self.cohort.dismiss(node, reason)


@pytest.fixture
def session() -> Any:
    return Session()


def ask(number: int, size: int = 0) -> Message:
    return Message("ask", round=number, tensors={"a": Tensor(np.zeros(size, np.uint8))})


def test_an_answer_closes_its_request(session: Any) -> None:
    requests = Requests(session)
    for name in NAMES:
        assert requests.ask(name, ask(3)) is None
    session.nodes["b"].send(Message("reply", round=3))
    outcome = requests.next(NAMES, 5)
    assert isinstance(outcome, Answer)
    assert (outcome.node, outcome.request, outcome.final, outcome.message.kind) == ("b", 3, True, "reply")
    assert dict(requests.pending) == {"a": 3, "c": 3}


def test_an_answer_to_an_earlier_request_is_late_and_leaves_the_present_one_open(session: Any) -> None:
    requests = Requests(session)
    requests.ask("a", ask(1))
    requests.ask("a", ask(2))
    for number in (1, 2):
        session.nodes["a"].send(Message("reply", round=number))
    late, final = requests.next(NAMES, 5), requests.next(NAMES, 5)
    assert isinstance(late, Answer)
    assert isinstance(final, Answer)
    assert (late.request, late.final, final.request, final.final) == (2, False, 2, True)
    assert not requests.pending


def test_what_nobody_asked_for_has_no_request(session: Any) -> None:
    session.nodes["c"].send(Message("hello"))
    outcome = Requests(session).next(NAMES, 5)
    assert isinstance(outcome, Answer)
    assert (outcome.node, outcome.request) == ("c", None)


def test_silence_leaves_requests_open(session: Any) -> None:
    requests = Requests(session)
    requests.ask("a", ask(1))
    assert requests.next(["a"], 0.01) is None
    assert dict(requests.pending) == {"a": 1}


def test_a_lost_node_is_a_failure_when_asked_and_when_awaited(session: Any) -> None:
    requests = Requests(session)
    requests.ask("a", ask(1))
    session.channels["a"].fail(PeerLostError("node a: gone"))
    assert requests.next(NAMES, 5) == Failure("a", "lost", "node a: gone")
    assert not requests.pending
    assert requests.ask("a", ask(2)) == Failure("a", "lost", "node a: gone")
    assert send(session, "a", ask(3)) == Failure("a", "lost", "node a: gone")
    assert not requests.pending


def test_a_node_that_breaks_the_format_is_dismissed(session: Any) -> None:
    error = WireError("bad frame")
    error.name = "b"
    session.faults.append(error)
    requests = Requests(session)
    requests.ask("b", ask(1))
    assert requests.next(NAMES, 5) == Failure("b", "faulty", "wire format error: bad frame")
    assert not requests.pending
    assert session.nodes["b"].receive(5).kind == "ask"
    with pytest.raises(PeerLostError, match="bad frame"):
        session.nodes["b"].receive(5)


def test_a_node_that_does_not_receive_is_full_and_keeps_its_request(session: Any) -> None:
    requests = Requests(session)
    assert requests.ask("a", ask(1, 900)) is None
    with pytest.raises(TimeoutError):
        requests.ask("a", ask(2, 900), 0.0)
    assert dict(requests.pending) == {"a": 1}


def test_errors_of_the_run_are_not_a_nodes(session: Any) -> None:
    session.faults.append(RunCancelledError("cancelled"))
    with pytest.raises(RunCancelledError):
        receive(session, NAMES)


def test_a_deadline_runs_down_to_zero_and_none_means_none() -> None:
    assert deadline(0.0)() is None
    remaining = deadline(1e-9)
    assert remaining() == 0.0
    left = deadline(1000)()
    assert left is not None
    assert 0 < left <= 1000
