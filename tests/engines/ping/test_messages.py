"""Messages of a ping run that are malformed or out of turn end in an error that names their sender."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from farshore.core.errors import RunFailedError, WireError
from farshore.core.message import Message
from farshore.engines.ping.config import PingConfig
from farshore.engines.ping.protocol import Block, Echo, Ping, block_tensors
from farshore.engines.ping.workload import PingWorkload
from farshore.simulations.in_process import InProcessRun
from farshore.wire.memory import pair

CONFIG = PingConfig(rounds=2, kilobytes=1)
TENSORS = block_tensors(np.arange(4, dtype=np.uint8))
DIGEST = bytes(32)


class Misbehaving(PingWorkload):
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
        ("ping", Ping().message(round=1), "expected 'ping' of round 2, got round 1"),
        ("ping", Echo(DIGEST).message(round=2, tensors=TENSORS), "expected 'ping', got a 'echo' message"),
        ("ping", Message("ping", round=2, fields={"time": 1.0}), "invalid 'ping' message: unknown field 'time'"),
        ("block", Ping().message(round=2), "expected 'echo', got a 'ping' message"),
        ("block", Message("echo", round=2, tensors=TENSORS), "'digest' is missing"),
        (
            "block",
            Message("echo", round=2, tensors=TENSORS, fields={"digest": "x"}),
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
        InProcessRun(
            Misbehaving(Echo(DIGEST).message(round=2, tensors=TENSORS), "block"), CONFIG, tmp_path / "run", ("a",)
        ).run()


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([Block().message(round=1, tensors=TENSORS)], "expected 'ping', got a 'block' message"),
        ([Ping().message(round=2)], "expected 'ping' of round 1, got round 2"),
        ([Ping().message(round=1), Ping().message(round=1)], "expected 'block', got a 'ping' message"),
        ([Ping().message(round=1), Message("block", round=1)], "expected the tensor 'block' in a 'block', got []"),
        (
            [Ping().message(round=1), Message("block", round=1, tensors=TENSORS, fields={"digest": DIGEST})],
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
        PingWorkload().node_program(session, CONFIG)
    assert complaint in str(caught.value)
    server.close()
