"""Control messages: what is written is read; anything else is refused with the peer's name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from farshore.core.control import MOST_VALUES, Control, Protocol, fields_of, read_fields
from farshore.core.errors import WireError
from farshore.core.message import Message, Scalar
from farshore.wire.pack import pack, unpack


@dataclass(frozen=True, slots=True)
class Form(Control, what="form"):
    rank: int
    names: tuple[str, ...]
    steps: tuple[int, ...]
    transport: Literal["star", "peers"]
    weight: float = 1.0
    listens: bool = False
    key: bytes = b""


@dataclass(frozen=True, slots=True)
class Report(Control, what="report", kind="metrics"):
    values: Mapping[str, float]
    total: int = 0


@dataclass(frozen=True, slots=True)
class Offer(Control, what="offer"):
    manifest: Mapping[str, Scalar]


@dataclass(frozen=True, slots=True)
class Done(Control, what="done"):
    pass


@dataclass(frozen=True, slots=True)
class Codes(Control, kind="activation"):
    """A header of messages with tensors, which has no name."""

    tokens: int

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ValueError(f"{self.tokens} tokens")


@dataclass(frozen=True, slots=True)
class Request(Control, what="request"):
    key: str
    expected: bytes | None = None
    operation: Literal["sum", "max"] | None = None


@dataclass(frozen=True, slots=True)
class Detailed(Done):
    score: float


@dataclass(frozen=True, slots=True)
class Echo:
    digest: bytes
    trips: int | None = None


PROTOCOL: Protocol[Form | Report | Offer | Done | Codes] = Protocol(Form, Report, Offer, Done, Codes)
FORM = Form(3, ("a", "b"), (), "star", 0.5, True, b"\x00")


def over_the_wire(message: Message) -> Message:
    packed = pack(message)
    return unpack(packed.header, memoryview(b"".join(packed.payload)))


@pytest.mark.parametrize(
    "sent",
    [FORM, Report({"loss": 0.5}, 7), Report({}), Offer({"digest": "x", "size": 3, "exact": True}), Done(), Codes(7)],
)
def test_a_message_is_read_as_it_was_sent(sent: Control) -> None:
    received = over_the_wire(sent.message(round=1, step=2, micro=3))
    assert (received.round, received.step, received.micro, received.kind) == (1, 2, 3, sent.kind)
    assert PROTOCOL.accepts(received)
    assert PROTOCOL.read(received, "node a") == sent


def test_the_fields_on_the_wire_are_those_of_the_class() -> None:
    assert FORM.message().fields == {
        "what": "form",
        "rank": 3,
        "names": "a,b",
        "steps": "",
        "transport": "star",
        "weight": 0.5,
        "listens": True,
        "key": b"\x00",
    }
    assert Report({"loss": 0.5}, 7).message().fields == {"what": "report", "loss": 0.5, "total": 7}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"rank": "3"}, "expected int, got str"),
        ({"rank": True}, "expected int, got bool"),
        ({"weight": 1}, "expected float, got int"),
        ({"steps": "1,x"}, "invalid literal"),
        ({"steps": 1}, "expected str, got int"),
        ({"steps": f"1,{1 << 63}"}, "an integer exceeds 64 bits"),
        ({"transport": "pigeon"}, "expected one of star, peers, got 'pigeon'"),
        ({"extra": 1}, "unknown field 'extra'"),
    ],
)
def test_a_wrong_field_is_refused(change: dict[str, Any], complaint: str) -> None:
    message = Message("control", fields={**FORM.message().fields, **change})
    with pytest.raises(WireError, match=f"node a: invalid 'form' message: .*{complaint}"):
        PROTOCOL.read(message, "node a")


def test_a_missing_field_is_refused_unless_it_has_a_default() -> None:
    given = dict(FORM.message().fields)
    del given["weight"]
    assert Form.read(Message("control", fields=given), "node a").weight == 1.0
    del given["rank"]
    with pytest.raises(WireError, match="'rank' is missing"):
        Form.read(Message("control", fields=given), "node a")


def test_values_of_a_mapping_have_its_type_and_are_bounded() -> None:
    with pytest.raises(WireError, match="expected float, got str"):
        Report.read(Message("metrics", fields={"what": "report", "loss": "low"}), "node a")
    many = {f"v{n}": 0.0 for n in range(MOST_VALUES + 1)}
    with pytest.raises(WireError, match="exceed the limit"):
        Report.read(Message("metrics", fields={"what": "report", **many}), "node a")


@pytest.mark.parametrize(
    "message", [Message("control"), Message("control", fields={"what": "x" * 500}), Message("model"), FORM.message()]
)
def test_another_message_is_refused_by_name(message: Message) -> None:
    protocol: Protocol[Report | Done] = Protocol(Report, Done)
    assert not protocol.accepts(message)
    with pytest.raises(WireError, match="node a: expected 'report', 'done', got a '") as caught:
        protocol.read(message, "node a")
    assert len(str(caught.value)) < 160


def test_a_name_of_another_kind_is_another_type() -> None:
    assert not PROTOCOL.accepts(Message("control", fields={"what": "report"}))


def test_a_type_without_a_name_is_known_by_its_kind() -> None:
    assert Codes(7).message().fields == {"tokens": 7}
    assert not PROTOCOL.accepts(Message("activation", fields={"what": "codes", "tokens": 7}))
    with pytest.raises(WireError, match="node a: expected 'activation', got a 'control' message 'done'"):
        Codes.read(Done().message(), "node a")
    with pytest.raises(WireError, match="node a: expected 'form', 'activation', got a 'control' message"):
        Protocol(Form, Codes).read(Message("control"), "node a")


def test_a_value_that_the_class_refuses_names_the_peer() -> None:
    with pytest.raises(WireError, match="node a: invalid 'activation' message: 0 tokens"):
        PROTOCOL.read(Message("activation", fields={"tokens": 0}), "node a")


def test_a_field_that_is_none_is_not_sent() -> None:
    protocol: Protocol[Request] = Protocol(Request)
    assert Request("k").message().fields == {"what": "request", "key": "k"}
    for sent in (Request("k"), Request("k", b""), Request("k", operation="max")):
        assert protocol.read(over_the_wire(sent.message()), "node a") == sent
    with pytest.raises(WireError, match="node a: invalid 'request' message: expected bytes, got int"):
        protocol.read(Message("control", fields={"what": "request", "key": "k", "expected": 1}), "node a")
    with pytest.raises(WireError, match="expected one of sum, max, got 'mode'"):
        protocol.read(Message("control", fields={"what": "request", "key": "k", "operation": "mode"}), "node a")


def test_a_subclass_adds_fields_to_a_message_type() -> None:
    sent = Detailed(0.5).message()
    assert sent.fields == {"what": "done", "score": 0.5}
    assert Done.matches(sent)
    assert Detailed.read(sent, "node a") == Detailed(0.5)
    with pytest.raises(WireError, match="unknown field 'score'"):
        Done.read(sent, "node a")


def test_fields_of_a_message_whose_kind_is_its_type_are_read_as_they_were_sent() -> None:
    for sent in (Echo(b"\x01"), Echo(b"", 3)):
        assert read_fields(Echo, over_the_wire(Message("echo", fields=fields_of(sent))), "node a") == sent
    assert fields_of(Echo(b"\x01")) == {"digest": b"\x01"}


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({}, "'digest' is missing"),
        ({"digest": "text"}, "expected bytes, got str"),
        ({"digest": b"", "what": "echo"}, "unknown field 'what'"),
        ({"digest": b"", "x" * 400: 1}, "unknown field 'xxxx"),
    ],
)
def test_other_fields_of_such_a_message_are_refused(fields: dict[str, Scalar], complaint: str) -> None:
    with pytest.raises(WireError, match=f"node a: invalid 'echo' message: {complaint}") as caught:
        read_fields(Echo, Message("echo", fields=fields), "node a")
    assert len(str(caught.value)) < 160
