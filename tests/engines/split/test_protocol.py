"""Both ends of a remote segment refuse invalid messages and messages out of turn, with the sender's name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from farshore.core.control import Control
from farshore.core.errors import WireError
from farshore.core.message import Message, Tensor
from farshore.engines.split.protocol import (
    REQUESTS,
    Backward,
    Done,
    Forward,
    Gradients,
    LoadBlock,
    LoadCodec,
    Output,
    ReadBlock,
    ReadCodec,
    StartCodec,
    Step,
)

CODES = {"codes": Tensor(np.zeros((2, 32), np.float32)), "lengths": Tensor(np.array([1, 1], np.uint32))}
FORWARD = Forward(train=True, backward=True, tokens=1, id=7, free=())
BACKWARD = Backward(dropped=False, keep=1.0, id=7, accumulate=True, want=True, retain=False)


def with_fields(request: Control, **changes: Any) -> Message:
    message = request.message(tensors=CODES)
    fields = {**message.fields, **changes}
    return replace(message, fields={name: value for name, value in fields.items() if value is not None})


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        (Message("model"), "expected 'weights', 'start'.*got a 'model' message"),
        (Message("control", fields={"what": "sleep"}), "got a 'control' message 'sleep'"),
        (with_fields(FORWARD, tokens=None), "invalid 'activation' message: 'tokens' is missing"),
        (with_fields(FORWARD, tokens="1"), "expected int, got str"),
        (with_fields(FORWARD, train=1), "expected bool, got int"),
        (with_fields(FORWARD, free="1,x"), "invalid 'activation' message"),
        (with_fields(FORWARD, more=1), "unknown field 'more'"),
        (with_fields(BACKWARD, keep=float("nan")), "gradients cannot be multiplied by nan"),
        (with_fields(Step(False, 1.0, 0.1), learning_rate=-1.0), "invalid learning rate -1.0"),
        (with_fields(Step(False, 1.0, 0.1), learning_rate=float("inf")), "invalid learning rate inf"),
        (with_fields(Step(False, 1.0, 0.1), learning_rate=1), "expected float, got int"),
    ],
)
def test_an_invalid_request_is_refused(message: Message, complaint: str) -> None:
    with pytest.raises(WireError, match=f"node 'a': .*{complaint}"):
        REQUESTS.read(message, "node 'a'")


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        (FORWARD.message(step=1, tensors=CODES), r"expected 'activation' 0\.0, got 'activation' 1\.0"),
        (FORWARD.message(micro=2, tensors=CODES), r"expected 'activation' 0\.0, got 'activation' 0\.2"),
        (Step(False, 1.0, 0.1).message(step=3), r"expected 'control' 0\.0, got 'control' 3\.0"),
        (BACKWARD.message(tensors=CODES), "forward 7, which has no graph"),
        (FORWARD.message(), "invalid batch: lengths"),
        (FORWARD.message(tensors={"lengths": CODES["lengths"]}), "'codes' is missing"),
        (FORWARD.message(tensors={**CODES, "codes": Tensor(np.zeros((2, 31), np.float32))}), "expected float32"),
        (FORWARD.message(tensors={**CODES, "codes": Tensor(np.zeros((2, 32), np.float64))}), "'codes' is float64"),
        (replace(FORWARD, tokens=2).message(tensors=CODES), "'codes' is float32 of shape"),
        (replace(FORWARD, tokens=0).message(tensors=CODES), "with 0 tokens per sentence"),
        (LoadBlock(9).message(), "the segment has no block 9"),
        (LoadBlock(1).message(), "is missing"),
        (LoadBlock(1).message(tensors={"other": CODES["codes"]}), "unknown tensor 'other'"),
        (ReadBlock(0).message(), "the weights of block 0 without sending"),
        (ReadCodec().message(), "the segment has no rank"),
        (LoadCodec().message(), "the segment has no rank"),
        (StartCodec(1).message(tensors=CODES), "the segment has no rank"),
    ],
)
def test_the_server_refuses_a_request_out_of_turn(
    split: Any, classifier: Any, message: Message, complaint: str
) -> None:
    def script(_: Any, attachment: Any) -> None:
        attachment.session.channel.send(message)
        attachment.session.channel.receive()

    with pytest.raises(WireError, match=f"^node 'edge-0': .*{complaint}"):
        split(classifier(), script)


def test_the_server_refuses_a_forward_pass_before_the_weights(split: Any, classifier: Any, batch: Any) -> None:
    def script(model: Any, _: Any) -> None:
        split.cloud.loaded.discard(2)
        model(**batch())

    with pytest.raises(WireError, match=r"^node 'edge-0': requested a forward pass before it sent the weights"):
        split(classifier(), script)


def reply(kind: type[Control], change: Callable[[Message], Message]) -> Callable[[Message], Message]:
    return lambda message: change(message) if kind.matches(message) else message


@pytest.mark.parametrize(
    ("hook", "complaint"),
    [
        (reply(Output, lambda m: Done().message()), "expected 'activation', got a 'control' message 'done'"),
        (reply(Output, lambda m: replace(m, step=4)), r"expected 'activation' 0\.0, got 'activation' 4\.0"),
        (reply(Output, lambda m: replace(m, fields={"extra": 1})), "unknown field 'extra'"),
        (reply(Output, lambda m: replace(m, tensors={})), "'codes' is missing"),
        (
            reply(Output, lambda m: replace(m, tensors={"codes": Tensor(m.array("codes")[1:])})),
            "'codes' is float32 of shape",
        ),
        (reply(Gradients, lambda m: replace(m, fields={})), "'norm' is missing"),
        (reply(Gradients, lambda m: replace(m, fields={"norm": "1"})), "expected float, got str"),
        (reply(Gradients, lambda m: replace(m, micro=0)), r"expected 'gradient' 0\.1, got 'gradient' 0\.0"),
        (reply(Gradients, lambda m: replace(m, tensors={})), "'codes' is missing"),
        (reply(Done, lambda m: Message("control", fields={"what": "ready"})), "expected 'done', got.* 'ready'"),
    ],
)
def test_a_script_refuses_an_invalid_reply(
    split: Any, classifier: Any, batch: Any, hook: Callable[[Message], Message], complaint: str
) -> None:
    def use(model: Any) -> None:
        torch.autograd.backward(model(**batch()).loss)
        model.load_state_dict(model.state_dict())

    def script(model: Any, attachment: Any) -> None:
        channel = attachment.session.channel
        receive = channel.receive
        channel.receive = lambda timeout=None: hook(receive(timeout))
        with pytest.raises(WireError, match=f"^the server: .*{complaint}"):
            use(model)
        channel.receive = receive

    split(classifier(), script)
