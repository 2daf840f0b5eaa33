"""Messages of a ping run that are malformed or out of turn end in an error that names their sender."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from farshore.core.errors import RunFailedError, WireError
from farshore.core.message import Message, Tensor
from farshore.engines.ping import protocol
from farshore.engines.ping.config import PingConfig
from farshore.engines.ping.workload import Ping
from farshore.simulations.in_process import InProcessRun
from farshore.wire.memory import pair

CONFIG = PingConfig(rounds=2, kilobytes=1)
BLOCK = np.arange(4, dtype=np.uint8)
DIGEST = bytes(32)


class Misbehaving(Ping):
    """Nodes answer the second round's block, or its ping, with a given message."""

    def __init__(self, answer: Message, to: str) -> None:
        self._answer, self._to = answer, to

    def node_program(self, session: Any, config: Any) -> None:
        channel = Replacing(session.channel, self._answer, self._to)
        given: Any = SimpleNamespace(channel=channel, resume_step=None, save_checkpoint=session.save_checkpoint)
        super().node_program(given, config)


class Replacing:
    """A channel that sends another message as the answer to one of the second round."""

    def __init__(self, channel: Any, answer: Message, to: str) -> None:
        self._channel, self._answer, self._to = channel, answer, to
        self._replace = False

    def receive(self) -> Message:
        message: Message = self._channel.receive()
        self._replace = (message.round, message.kind) == (2, self._to)
        return message

    def send(self, message: Message) -> None:
        self._channel.send(self._answer if self._replace else message)


@pytest.mark.parametrize(
    ("to", "answer", "complaint"),
    [
        ("ping", protocol.ping(1), "expected 'ping' of round 2, got a 'ping' message of round 1"),
        ("ping", protocol.echo(2, BLOCK, DIGEST), "expected 'ping' of round 2, got a 'echo' message"),
        ("ping", Message("ping", round=2, fields={"time": 1.0}), "invalid 'ping' message: unknown field 'time'"),
        ("block", protocol.ping(2), "expected 'echo' of round 2, got a 'ping' message"),
        ("block", Message("echo", round=2, tensors={"block": Tensor(BLOCK)}), "'digest' is missing"),
        (
            "block",
            Message("echo", round=2, tensors={"block": Tensor(BLOCK)}, fields={"digest": "x"}),
            "expected bytes, got str",
        ),
        ("block", Message("echo", round=2, fields={"digest": DIGEST}), "expected the tensor 'block' in a 'echo'"),
    ],
)
def test_an_invalid_answer_ends_the_run_with_an_error_that_names_the_node(
    to: str, answer: Message, complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(WireError, match="node a: ") as caught:
        InProcessRun(Misbehaving(answer, to), CONFIG, tmp_path / "run", ("a",)).run()
    assert complaint in str(caught.value)


def test_an_echo_of_other_bytes_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(RunFailedError, match="node a, round 2: the echo differs"):
        InProcessRun(Misbehaving(protocol.echo(2, BLOCK, DIGEST), "block"), CONFIG, tmp_path / "run", ("a",)).run()


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([protocol.block(1, BLOCK)], "expected 'ping' of round 1, got a 'block' message"),
        ([protocol.ping(2)], "got a 'ping' message of round 2"),
        ([protocol.ping(1), protocol.ping(1)], "expected 'block' of round 1, got a 'ping' message"),
        ([protocol.ping(1), Message("block", round=1)], "expected the tensor 'block' in a 'block', got []"),
        (
            [protocol.ping(1), Message("block", round=1, tensors={"block": Tensor(BLOCK)}, fields={"digest": DIGEST})],
            "invalid 'block' message: unknown field 'digest'",
        ),
    ],
)
def test_an_invalid_message_of_the_server_ends_the_node_program(messages: list[Message], complaint: str) -> None:
    server, node = pair("a")
    for message in messages:
        server.send(message)
    session: Any = SimpleNamespace(channel=node, resume_step=None)
    with pytest.raises(WireError, match="the server: ") as caught:
        Ping().node_program(session, CONFIG)
    assert complaint in str(caught.value)
    server.close()
