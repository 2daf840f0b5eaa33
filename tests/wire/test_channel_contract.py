"""The contract of channels: in memory, over gRPC, and over gRPC through the relay."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest

from farshore.core.errors import FarshoreError, PeerLostError, RunCancelledError
from farshore.core.message import Message, Tensor
from farshore.core.session import Channel as ChannelProtocol
from farshore.wire.channel import receive_any
from farshore.wire.encodings import Int4

KINDS = ("memory", "direct", "relay")
each_kind = pytest.mark.parametrize("kind", KINDS)


@each_kind
def test_messages_arrive_in_order_in_both_directions(network: Any, kind: str) -> None:
    ends = network.connect(kind)
    up = threading.Thread(target=lambda: [ends.node.send(network.message(i, 100 + i)) for i in range(200)])
    down = threading.Thread(target=lambda: [ends.server.send(network.message(i, 50 + i)) for i in range(200)])
    up.start()
    down.start()
    for i in range(200):
        network.check(ends.server.receive(20), i, 100 + i)
        network.check(ends.node.receive(20), i, 50 + i)
    up.join()
    down.join()


@each_kind
@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + (1 << 16), 5 * (1 << 20) + 7])
def test_messages_of_any_size_arrive_completely(network: Any, kind: str, size: int) -> None:
    ends = network.connect(kind)
    ends.node.send(network.message(3, size))
    network.check(ends.server.receive(20), 3, size)


@each_kind
def test_all_parts_of_a_message_arrive(network: Any, kind: str) -> None:
    ends = network.connect(kind)
    values = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    sent = Message(
        "activation",
        round=2,
        step=3,
        micro=4,
        tensors={
            "codes": Tensor(values, Int4()),
            "mask": Tensor(values > 0),
            "b": Tensor(np.zeros(3, np.uint16), None, "bf16"),
        },
        fields={"lr": 0.5, "last": True, "n": -3, "text": "ä", "blob": b"\x00"},
    )
    ends.server.send(sent)
    got = ends.node.receive(20)
    assert (got.kind, got.round, got.step, got.micro) == ("activation", 2, 3, 4)
    assert dict(got.fields) == dict(sent.fields)
    assert np.array_equal(got.array("mask"), values > 0)
    assert got.tensors["b"].dtype == "bf16"
    assert np.abs(got.array("codes") - values).max() < 0.5 * np.abs(values).max()


@each_kind
def test_arrays_may_be_modified_after_send(network: Any, kind: str) -> None:
    ends = network.connect(kind)
    array = np.ones(300_000, np.float32)
    for i in range(5):
        array[:] = i
        ends.node.send(Message("test", tensors={"a": Tensor(array)}))
    array[:] = -1
    for i in range(5):
        assert (ends.server.receive(20).array("a") == i).all()


@each_kind
def test_a_sender_blocks_at_the_window_while_the_receiver_stalls(network: Any, kind: str) -> None:
    size, window, count = 100_000, 1_000_000, 60
    ends = network.connect(kind, window_bytes=window)
    sent = []

    def send() -> None:
        for i in range(count):
            ends.node.send(network.message(i, size))
            sent.append(i)

    sender = threading.Thread(target=send)
    sender.start()
    settled = _settle(lambda: len(sent))
    assert window // size - 1 <= settled <= window // size
    assert ends.server.inbox.bytes <= window
    for i in range(count):
        network.check(ends.server.receive(20), i, size)
        assert len(sent) <= i + 2 + window // size
    sender.join()


def _settle(value: Any) -> int:
    last, since = value(), time.monotonic()
    while time.monotonic() - since < 0.4:
        time.sleep(0.02)
        if value() != last:
            last, since = value(), time.monotonic()
    return int(last)


@each_kind
def test_a_frame_larger_than_the_window_is_sent_alone(network: Any, kind: str) -> None:
    ends = network.connect(kind, window_bytes=100_000)
    sender = threading.Thread(target=lambda: [ends.node.send(network.message(i, 300_000)) for i in range(6)])
    sender.start()
    for i in range(6):
        network.check(ends.server.receive(20), i, 300_000)
        assert ends.server.inbox.bytes <= 300_100
    sender.join()


@each_kind
def test_receive_raises_after_its_timeout(network: Any, kind: str) -> None:
    ends = network.connect(kind)
    with pytest.raises(TimeoutError):
        ends.server.receive(0.05)
    ends.node.send(network.message(1))
    network.check(ends.server.receive(20), 1)


@each_kind
def test_close_delivers_all_messages_and_then_the_reason(network: Any, kind: str) -> None:
    ends = network.connect(kind)
    for i in range(20):
        ends.node.send(network.message(i, 10_000))
    closer = threading.Thread(target=lambda: ends.node.close(20, "all batches are done"))
    closer.start()
    for i in range(20):
        network.check(ends.server.receive(20), i, 10_000)
    with pytest.raises(PeerLostError, match="all batches are done"):
        ends.server.receive(20)
    closer.join()
    with pytest.raises(PeerLostError):
        ends.server.send(network.message(1))
    with pytest.raises(PeerLostError):
        ends.node.send(network.message(1))
    with pytest.raises(PeerLostError):
        ends.node.receive(1)


@each_kind
@pytest.mark.parametrize("blocked", ["send", "receive"])
def test_fail_wakes_a_blocked_program(network: Any, kind: str, blocked: str) -> None:
    ends = network.connect(kind, window_bytes=100_000)
    caught: list[FarshoreError] = []

    def program() -> None:
        try:
            while blocked == "send":
                ends.server.send(network.message(0, 30_000))
            ends.server.receive()
        except FarshoreError as error:
            caught.append(error)

    thread = threading.Thread(target=program)
    thread.start()
    time.sleep(0.2)
    assert thread.is_alive()
    ends.server.fail(RunCancelledError("the run was cancelled"))
    thread.join(10)
    assert not thread.is_alive()
    assert isinstance(caught[0], RunCancelledError)


@each_kind
def test_several_threads_may_send(network: Any, kind: str) -> None:
    ends = network.connect(kind, window_bytes=200_000)
    threads = [
        threading.Thread(target=lambda base=base: [ends.node.send(network.message(base + i, 5000)) for i in range(30)])
        for base in (0, 100, 200)
    ]
    for thread in threads:
        thread.start()
    seen: dict[int, list[int]] = {0: [], 100: [], 200: []}
    for _ in range(90):
        got = ends.server.receive(20)
        network.check(got, got.step, 5000)
        seen[got.step // 100 * 100].append(got.step)
    assert all(steps == list(range(base, base + 30)) for base, steps in seen.items())
    for thread in threads:
        thread.join()


@each_kind
def test_receive_any_returns_messages_in_the_order_of_arrival(network: Any, kind: str) -> None:
    pairs = {name: network.connect(kind, name) for name in ("a", "b", "c")}
    channels = {name: ends.server for name, ends in pairs.items()}
    order = ["c", "a", "c", "b", "a", "b", "c"]
    for number, name in enumerate(order):
        pairs[name].node.send(network.message(number))
        _until(lambda sent=number + 1: sum(len(c.inbox) for c in channels.values()) == sent)
    got = [receive_any(channels, 20) for _ in order]
    assert [name for name, _ in got] == order
    assert [message.step for _, message in got] == list(range(len(order)))
    with pytest.raises(TimeoutError):
        receive_any(channels, 0.05)


@each_kind
def test_receive_any_wakes_up_and_reports_a_lost_peer_after_all_messages(network: Any, kind: str) -> None:
    pairs = {name: network.connect(kind, name) for name in ("a", "b")}
    channels = {name: ends.server for name, ends in pairs.items()}
    timer = threading.Timer(0.1, lambda: pairs["b"].node.send(network.message(5)))
    timer.start()
    name, message = receive_any(channels, 20)
    assert (name, message.step) == ("b", 5)
    channels["a"].fail(PeerLostError("node a is lost"))
    pairs["b"].node.send(network.message(6))
    _until(lambda: len(channels["b"].inbox) == 1)
    assert receive_any(channels, 20)[1].step == 6
    with pytest.raises(PeerLostError, match="node a is lost") as caught:
        receive_any(channels, 20)
    assert caught.value.name == "a"


def _until(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_the_ledger_rows_are_the_same_for_all_kinds_of_connection(network: Any) -> None:
    tables = []
    for kind in KINDS:
        ends = network.connect(kind, "edge")
        for i in range(10):
            ends.node.send(network.message(i, 1000 * i * i * i, "activation"))
            ends.server.receive(20)
            ends.server.send(network.message(i, 10 * i, "gradient"))
            ends.node.receive(20)
        tables.append(
            [
                (
                    r.node,
                    r.direction,
                    r.kind,
                    r.encoding,
                    r.step,
                    r.dense_bytes,
                    r.payload_bytes,
                    r.frame_bytes,
                    r.attempt,
                )
                for r in ends.data_rows
            ]
        )
    assert len(tables[0]) == 20
    assert tables[0] == tables[1] == tables[2]
    assert {row[1:3] for row in tables[0]} == {("up", "activation"), ("down", "gradient")}


@each_kind
def test_channels_implement_the_session_protocol(network: Any, kind: str) -> None:
    ends = network.connect(kind, "edge-7")
    channel: ChannelProtocol = ends.server
    assert channel.peer == "edge-7"
    assert ends.node.peer == "server"
