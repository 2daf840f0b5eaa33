"""Published messages: the newest message of a key supersedes older ones, the order is kept, senders never block."""

from __future__ import annotations

import random
import threading
from typing import Any

import numpy as np
import pytest

from farshore.core.errors import PeerLostError
from farshore.core.message import Message, Tensor
from farshore.core.transfer import Transfer
from farshore.wire.channel import Channel
from farshore.wire.connection import Connection

KINDS = ("memory", "direct", "relay")


def value(step: int, size: int = 0, kind: str = "weights") -> Message:
    return Message(kind, step=step, tensors={"a": Tensor(np.full(size, step % 251, np.uint8))})


class Link:
    """Two channels, and a connection whose chunks are moved explicitly."""

    def __init__(self, window: int = 1 << 20) -> None:
        self.rows: list[Transfer] = []
        self.server = Channel("edge", "edge", "server", recorder=self.rows.append, window_bytes=window)
        self.node = Channel("server", "edge", "node", window_bytes=window)
        self.connect()
        self.settle()

    def connect(self) -> None:
        self.ends: tuple[Connection, Connection] = tuple(  # type: ignore[assignment]
            channel.attach(lambda: None) for channel in (self.server, self.node)
        )

    def settle(self) -> None:
        """Move chunks in both directions until there are none left."""
        moved = True
        while moved:
            moved = False
            for source, sink in (self.ends, self.ends[::-1]):
                for chunk in source.outgoing():
                    sink.feed(chunk)
                    moved = True

    def flow(self) -> list[int]:
        """Move chunks and receive until there is nothing left; returns the steps received."""
        got: list[int] = []
        self.settle()
        while self.node.inbox.ready:
            got += self.waiting()
            self.settle()
        return got

    def waiting(self) -> list[int]:
        """Receive all arrived messages at the node; returns their steps."""
        steps = []
        while self.node.inbox.ready:
            message = self.node.receive(0)
            assert (message.array("a") == message.step % 251).all()
            steps.append(message.step)
        return steps


def test_a_newer_message_supersedes_one_that_has_not_been_sent() -> None:
    link = Link()
    for step in range(1, 6):
        link.server.publish("w", value(step, 1000))
    link.settle()
    assert link.waiting() == [5]
    sent = [row for row in link.rows if row.kind == "weights"]
    assert [row.step for row in sent] == [5], "the ledger must contain sent messages only"
    assert sum(row.kind == "skip" for row in link.rows) == 4


def test_a_newer_message_supersedes_one_that_was_not_received() -> None:
    link = Link()
    for step in range(1, 6):
        link.server.publish("w", value(step, 1000))
        link.settle()
    assert link.waiting() == [5]
    assert [row.step for row in link.rows if row.kind == "weights"] == [1, 2, 3, 4, 5]


def test_messages_of_other_keys_are_not_superseded_and_the_order_is_kept() -> None:
    link = Link()
    link.server.publish("a", value(1))
    link.server.send(value(2, kind="control"))
    link.server.publish("b", value(3))
    link.server.publish("a", value(4))
    link.server.send(value(5, kind="control"))
    link.settle()
    assert link.waiting() == [2, 3, 4, 5]


@pytest.mark.parametrize("seed", range(40))
def test_sent_messages_and_the_newest_of_each_key_arrive_in_order_whenever_connections_break(seed: int) -> None:
    draw = random.Random(seed)
    link = Link(window=6000)
    got: list[int] = []
    sent: list[tuple[int, str]] = []
    for step in range(60):
        key = draw.choice(["", "a", "b"])
        sent.append((step, key))
        if key:
            link.server.publish(key, value(step, draw.randrange(3000)))
        else:
            got += link.flow()
            link.server.send(value(step, draw.randrange(3000)), 5)
        match draw.randrange(6):
            case 0:
                link.connect()
            case 1 | 2:
                for chunk, _ in zip(link.ends[0].outgoing(), range(draw.randrange(3)), strict=False):
                    link.ends[1].feed(chunk)
                link.connect()  # a frame may be cut in the middle
            case 3:
                link.settle()
            case 4:
                got += link.waiting()
    got += link.flow()
    assert got == sorted(set(got))
    assert {step for step, key in sent if not key} <= set(got)
    for key in ("a", "b"):
        newest = max((step for step, k in sent if k == key), default=None)
        assert newest is None or newest in got
    link.server.drained(0)  # asks for an acknowledgement
    link.settle()
    assert link.server.drained(0)


def test_published_messages_wait_for_the_window_and_only_the_newest_is_sent() -> None:
    link = Link(window=10_000)
    link.server.publish("w", value(1, 8000))
    link.settle()
    for step in range(2, 9):
        link.server.publish("w", value(step, 8000))
        link.settle()
    assert [row.step for row in link.rows if row.kind == "weights"] == [1], "the window must be full"
    assert link.waiting() == [1]
    link.settle()
    link.settle()
    assert link.waiting() == [8]
    assert [row.step for row in link.rows if row.kind == "weights"] == [1, 8]


def test_superseded_messages_are_acknowledged_even_if_the_program_never_receives() -> None:
    link = Link(window=10_000)
    for step in range(200):
        link.server.publish("w", value(step, 1000))
        link.settle()
    assert link.server._outbox.bytes < 10_000
    assert link.waiting() == [199]


@pytest.mark.parametrize("kind", KINDS)
def test_a_slow_receiver_gets_only_the_newest_message(network: Any, until: Any, kind: str) -> None:
    ends = network.connect(kind)
    size, count = 1 << 20, 60
    ends.node.send(network.message(0))
    ends.server.receive(20)  # the connection is up
    publisher = threading.Thread(target=lambda: [ends.server.publish("w", value(s, size)) for s in range(1, count + 1)])
    publisher.start()
    publisher.join(60)
    assert not publisher.is_alive(), "publishing must not block"
    ends.server.send(Message("end"))
    until(lambda: len(ends.node.inbox) == 2)  # everything in transit has arrived
    assert ends.node.inbox.bytes < 2 * size
    assert [ends.node.receive(0).step, ends.node.receive(0).kind] == [count, "end"]


@pytest.mark.parametrize("kind", KINDS)
def test_published_and_sent_messages_keep_their_order_on_real_connections(network: Any, kind: str) -> None:
    ends = network.connect(kind)
    for step in range(1, 101):
        ends.server.publish("w", value(step))
        ends.server.send(value(1000 + step, kind="control"))
    newest, controls = 0, []
    for _ in range(10_000):
        message = ends.node.receive(20)
        if message.kind == "control":
            controls.append(message.step - 1000)
            if controls[-1] == 100:
                break
        else:
            assert message.step == max(controls, default=0) + 1 or message.step > newest
            newest = message.step
            assert newest > max(controls, default=0), "a published message arrived after a message sent later"
    assert controls == list(range(1, 101))


@pytest.mark.parametrize("kind", KINDS)
def test_publishing_to_a_closed_channel_fails(network: Any, kind: str) -> None:
    ends = network.connect(kind)
    ends.node.close(0.1, "done")
    with pytest.raises(PeerLostError, match="closed"):
        ends.server.receive(20)
    with pytest.raises(PeerLostError):
        ends.server.publish("w", value(1))
