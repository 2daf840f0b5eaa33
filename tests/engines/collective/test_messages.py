"""Malformed messages, and messages out of turn, in a collective run: an error with the sender's name, for it alone."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import BaseModel

from farshore.core.control import fields_of
from farshore.core.errors import PeerLostError, WireError
from farshore.core.message import Message, Scalar, Tensor
from farshore.core.session import Channel
from farshore.engines.collective.coordinator import Coordinator
from farshore.engines.collective.elastic_groups import elastic_groups
from farshore.engines.collective.protocol import (
    FROM_SERVER,
    Done,
    End,
    Form,
    Go,
    Kept,
    Lost,
    Ready,
    Request,
    Stored,
    StoreRequest,
)
from farshore.engines.collective.star_client import PendingReply, RanksChangedError, StarClient
from farshore.engines.collective.store import MAX_LENGTH
from farshore.simulations.in_process import InProcessRun
from farshore.wire.memory import MemoryChannel, pair

FORM = Form(1, 0, ("a", "b"), 0, -1, "star")
REQUEST = Request("g", 1, (0, 1, 2), "sum", -1)
PART = {"0": Tensor(np.ones(2, np.float32))}


def control(**fields: Scalar) -> Message:
    return Message("control", fields=fields)


def request(kind: str, **changes: Any) -> Message:
    """A part of a collective with changed fields; None removes a field."""
    fields = {**fields_of(REQUEST), **changes}
    return Message(kind, micro=1, tensors=PART, fields={n: v for n, v in fields.items() if v is not None})


# -- from a node ----------------------------------------------------------------------------------------------------


class NoSettings(BaseModel):
    """The run has no settings."""


class Scripted:
    """A collective run whose ranks follow scripts: ``script(channel)`` by node."""

    name, summary, config = "scripted", "", NoSettings
    on_lost_node = "continue"
    uses_torch = False

    def __init__(self, scripts: Mapping[str, Callable[[Channel], None]]) -> None:
        self._scripts = scripts
        self.results: dict[str, End] = {}
        self.formations: list[int] = []

    def node_data(self, config: BaseModel) -> tuple[tuple[str, ...], ...]:
        return ()

    def server_program(self, session: Any, config: BaseModel) -> dict[str, Any]:
        coordinator = Coordinator(session, End, transport="star")
        _, self.results = coordinator.run()
        self.formations = [ranks for _, ranks, _ in coordinator.formations]
        return {}

    def node_program(self, session: Any, config: BaseModel) -> None:
        self._scripts[session.node](session.channel)


def run(workload: Scripted, folder: Path) -> None:
    InProcessRun(workload, NoSettings(), folder / "run", tuple(sorted(workload._scripts))).run()  # type: ignore[arg-type]


def join(channel: Channel) -> Form:
    """Send ``ready`` and return the group that forms."""
    channel.send(Ready((), False).message())
    while not isinstance(form := FROM_SERVER.read(channel.receive(), "the server"), Form):
        assert isinstance(form, Lost)
    return form


def finish_when(ready: threading.Event) -> Callable[[Channel], None]:
    """The script of a rank that joins, waits for ``ready`` and ends; it joins again if its group has ended."""

    def script(channel: Channel) -> None:
        while True:
            join(channel)
            assert ready.wait(20)
            channel.send(End().message())
            if isinstance(FROM_SERVER.read(channel.receive(), "the server"), Done):
                return

    return script


def ends_with_refusal(first: bool, *messages: Message) -> tuple[Callable[[Channel], None], threading.Event, list[str]]:
    """The script of a rank that sends ``messages``, an event at its end, and the reason for which it was dismissed."""
    refused, reasons = threading.Event(), list[str]()

    def script(channel: Channel) -> None:
        try:
            if not first:
                join(channel)
            for message in messages:
                channel.send(message)
            while True:
                channel.receive()
        except PeerLostError as error:
            reasons.append(str(error))
        finally:
            refused.set()

    return script, refused, reasons


READY = fields_of(Ready((), False))

FIRST = {
    "another message": (Message("model", tensors=PART), "expected 'ready', got a 'model' message"),
    "out of turn": (Kept().message(), "expected 'ready', got a 'control' message 'kept'"),
    "missing": (control(what="ready", steps=""), "invalid 'ready' message: 'listens' is missing"),
    "extra": (control(what="ready", **READY, name="b"), "invalid 'ready' message: unknown field 'name'"),
    "wrong type": (control(what="ready", **{**READY, "listens": 1}), "invalid 'ready' message: expected bool, got int"),
    "no number": (control(what="ready", **{**READY, "steps": "1,x"}), "invalid 'ready' message"),
    "huge number": (control(what="ready", **{**READY, "steps": "9" * 30}), "exceeds 64 bits"),
}

LATER = {
    "ready again": (Ready((), False).message(), "'ready' from a rank of the current group"),
    "unknown": (control(what="metrics", loss=0.5), "unexpected a 'control' message 'metrics'"),
    "another kind": (Message("model", tensors=PART), "unexpected a 'model' message"),
    "kept, extra": (control(what="kept", step=3), "invalid 'kept' message: unknown field 'step'"),
    "end, extra": (control(what="end", accuracy=1.0), "invalid 'end' message: unknown field 'accuracy'"),
    "moved, wrong type": (control(what="moved", all_reduce="9"), "invalid 'moved' message: expected int, got str"),
    "moved, unknown kind": (control(what="moved", gossip=9), "9 bytes of 'gossip'"),
    "moved, negative": (control(what="moved", all_reduce=-1), "-1 bytes of 'all_reduce'"),
    "store, missing": (control(what="store", do="get", value=b""), "invalid 'store' message: 'key' is missing"),
    "store, unknown": (control(what="store", do="drop", key="k", value=b""), "expected one of set, get, add"),
    "store, no number": (StoreRequest("add", "k", b"x").message(), "is not a number"),
    "store, too long": (StoreRequest("set", "k", bytes(MAX_LENGTH + 1)).message(), "exceeds"),
    "no group": (request("all_reduce", group=None), "invalid 'all_reduce' message: 'group' is missing"),
    "wrong generation": (request("all_reduce", generation="1"), "expected int, got str"),
    "wrong members": (request("all_reduce", members="0,1,7"), "are not a group of the 3 ranks"),
    "members twice": (request("all_reduce", members="0,1,1"), "are not a group of the 3 ranks"),
    "not a member": (request("all_reduce", members="0,2"), "in a group that it is not a member of"),
    "unknown reduction": (request("all_reduce", operation="mode"), "expected one of sum, avg, min, max, product"),
    "no reduction": (request("reduce", operation=None, root=0), "a reduce with the reduction None"),
    "no root": (request("reduce", root=None), "root rank None is outside the group of 3"),
    "root outside": (request("reduce", root=3), "root rank 3 is outside the group of 3"),
    "target outside": (request("send", operation=None, target=9), "target rank 9 is outside the group of 3"),
    "no target": (request("send", operation=None), "a send with the target rank None"),
    "extra field": (request("barrier", operation=None, why="x"), "invalid 'barrier' message: unknown field 'why'"),
}


@pytest.mark.parametrize(
    ("first", "message", "complaint"),
    [(True, *case) for case in FIRST.values()] + [(False, *case) for case in LATER.values()],
    ids=[*FIRST, *LATER],
)
def test_a_node_that_sends_an_invalid_message_is_dismissed_and_the_others_finish(
    first: bool, message: Message, complaint: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    script, refused, reasons = ends_with_refusal(first, message)
    workload = Scripted({"a": finish_when(refused), "b": script, "c": finish_when(refused)})
    with caplog.at_level(logging.INFO):
        run(workload, tmp_path)
    assert sorted(workload.results) == ["a", "c"]
    assert workload.formations == ([2] if first else [3, 2])
    assert "node b" in reasons[0]
    assert complaint in reasons[0]
    assert complaint in caplog.text


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ((Kept().message(step=1), Kept().message(step=1)), "'kept' from a rank that waits for the others"),
        ((request("all_reduce"), request("all_reduce")), "sent its part of a all_reduce twice"),
    ],
)
def test_a_rank_that_repeats_itself_is_dismissed(messages: tuple[Message, ...], complaint: str, tmp_path: Path) -> None:
    script, refused, reasons = ends_with_refusal(False, *messages)
    workload = Scripted({"a": finish_when(refused), "b": script, "c": finish_when(refused)})
    run(workload, tmp_path)
    assert workload.formations == [3, 2]
    assert f"node b: {complaint}" in reasons[0] or f"node b {complaint}" in reasons[0]


def test_the_others_go_on_in_the_same_group_when_a_finished_rank_is_dismissed(tmp_path: Path) -> None:
    script, refused, reasons = ends_with_refusal(False, request("all_reduce"), End().message(), End().message())
    ended = threading.Event()
    sums: dict[str, list[float]] = {}

    def reduce(channel: Channel, name: str) -> None:
        join(channel)
        assert refused.wait(20)
        channel.send(request("all_reduce"))
        sums[name] = channel.receive().array("0").tolist()

    def b(channel: Channel) -> None:
        reduce(channel, "b")
        channel.send(End().message())
        ended.set()
        assert Done.matches(channel.receive())

    def c(channel: Channel) -> None:
        reduce(channel, "c")
        assert ended.wait(20)
        # Answered only while the server still serves.
        channel.send(StoreRequest("check", "k", b"").message(micro=5))
        assert Stored.matches(channel.receive())
        channel.send(End().message())
        assert Done.matches(channel.receive())

    workload = Scripted({"a": script, "b": b, "c": c})
    run(workload, tmp_path)
    assert "'end' from a rank that has finished" in reasons[0]
    assert sums == {"b": [3.0, 3.0], "c": [3.0, 3.0]}
    assert sorted(workload.results) == ["a", "b", "c"]
    assert workload.formations == [3]


def test_an_engine_refuses_invalid_messages_of_its_own_in_the_same_way(tmp_path: Path) -> None:
    class Strict(Scripted):
        def server_program(self, session: Any, config: BaseModel) -> dict[str, Any]:
            def on_message(node: str, message: Message) -> None:
                raise WireError(f"node {node}: not today")

            coordinator = Coordinator(session, End, transport="star", on_message=on_message)
            _, self.results = coordinator.run()
            return {}

    script, refused, reasons = ends_with_refusal(False, control(what="metrics"))
    workload = Strict({"a": finish_when(refused), "b": script})
    run(workload, tmp_path)
    assert sorted(workload.results) == ["a"]
    assert "node b: not today" in reasons[0]


# -- from the server ------------------------------------------------------------------------------------------------


@pytest.fixture
def ends() -> Iterator[tuple[MemoryChannel, MemoryChannel]]:
    made = pair("a")
    yield made
    made[0].close()


FORM_FIELDS = FORM.message().fields
REPLY = {"group": "g", "generation": 1}


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        (control(what="halt"), "expected 'form', 'go', 'done', 'lost', 'failed', 'stored', got a 'control' message 'h"),
        (control(**{**FORM_FIELDS, "rank": "0"}), "invalid 'form' message: expected int, got str"),
        (control(**{**FORM_FIELDS, "transport": "pigeon"}), "expected one of star, peers, got 'pigeon'"),
        (control(**{n: v for n, v in FORM_FIELDS.items() if n != "step"}), "'step' is missing"),
        (control(what="go", step=1), "invalid 'go' message: unknown field 'step'"),
        (control(what="lost"), "invalid 'lost' message: 'why' is missing"),
        (control(what="stored", value="text"), "invalid 'stored' message: expected bytes, got str"),
        (Message("all_reduce", fields={"group": "g"}), "invalid 'all_reduce' message: 'generation' is missing"),
        (Message("all_reduce", fields={**REPLY, "operation": "sum"}), "unknown field 'operation'"),
        (Message("model", fields={}), "got a 'model' message"),
    ],
)
def test_an_invalid_message_of_the_server_fails_all_that_waits_for_it(
    ends: tuple[MemoryChannel, MemoryChannel], message: Message, complaint: str
) -> None:
    server, node = ends
    client = StarClient(node)
    client.start_generation(1)
    pending = client.expect("g", 1, PendingReply(lambda received: []))
    server.send(message)
    with pytest.raises(WireError, match="the server: ") as caught:
        client.receive_control()
    assert complaint in str(caught.value)
    with pytest.raises(Exception, match="the server: "):
        pending.future.wait()
    with pytest.raises(WireError):
        client.send_part("all_reduce", 2, REQUEST, {})
    with pytest.raises(WireError):
        client.store_request(1, StoreRequest("get", "k", b""))


def test_a_failed_run_ends_a_rank_that_waits_for_an_answer(ends: tuple[MemoryChannel, MemoryChannel]) -> None:
    server, node = ends
    client = StarClient(node)
    server.send(control(what="failed", why="ranks saved checkpoints of different steps"))
    with pytest.raises(Exception, match="different steps"):
        client.receive_control()


def test_a_group_that_ends_before_its_rank_has_begun_fails_the_rank_s_first_collective(
    ends: tuple[MemoryChannel, MemoryChannel],
) -> None:
    server, node = ends
    client = StarClient(node)
    server.send(FORM.message())
    server.send(Lost("node b was lost").message())
    assert isinstance(client.wait_for_error(20), RanksChangedError)
    assert client.receive_control() == FORM
    with pytest.raises(RanksChangedError, match="node b was lost"):
        client.send_part("all_reduce", 1, REQUEST, {"0": torch.ones(1)})


def test_an_answer_out_of_turn_fails_the_rank(ends: tuple[MemoryChannel, MemoryChannel]) -> None:
    server, node = ends
    session: Any = SimpleNamespace(channel=node, resume_step=None, save_checkpoint=lambda *_: None)
    server.send(Lost("node c was lost").message())  # of the group before; not an answer
    server.send(FORM.message())
    groups = elastic_groups(session)
    group = next(groups)
    assert (group.rank, group.names, group.step, group.source) == (0, ("a", "b"), 0, -1)
    server.send(Done().message())
    with pytest.raises(WireError, match="the server: expected 'go', got 'done'"):
        group.checkpoint(4, {}, {})
    server.send(Go().message())
    with pytest.raises(WireError, match="the server: expected 'done', got 'go'"):
        group.finish({}, End())
    server.send(Lost("node b was lost").message())
    with pytest.raises(RanksChangedError, match="node b was lost"):
        group.finish({}, End())
    group.changed = True
    server.send(Go().message())
    with pytest.raises(WireError, match="the server: expected 'form', got 'go'"):
        next(groups)
    sent = [Ready.matches(m) or m.fields["what"] for m in (server.receive(1) for _ in range(5))]
    assert sent == [True, "kept", "end", "end", True]
