"""Conversion of Flower messages to frames and back is exact; arrays become tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from farshore.core.errors import WireError
from farshore.core.message import Message, Tensor
from farshore.wire.encodings import parse
from farshore.wire.pack import pack, unpack

pytest.importorskip("flwr")
from farshore.engines.flower import compat as fl
from farshore.engines.flower.arrays import from_frame, round_of, to_frame


@pytest.fixture(autouse=True)
def _identity() -> None:
    fl.set_server_identity(7)


def _message(**records: Any) -> fl.Message:
    return fl.Message(fl.RecordDict(records), 12, "train", group_id="3")


def _sent(message: fl.Message, encoding: Any = None) -> fl.Message:
    packed = pack(to_frame(message, round_of(message), encoding))
    return from_frame(unpack(packed.header, memoryview(b"".join(packed.payload))), "node a")


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype=np.float32).reshape(3, 4),
        np.arange(12, dtype=np.float64).reshape(3, 4).T,
        np.array(3.5, np.float16),
        np.zeros((0, 4), np.int64),
        np.array([True, False]),
        np.arange(4, dtype=">f4"),
        np.array([1 + 2j]),
        np.array(["a", "bc"]),
        np.zeros((1,) * 10, np.float32),
    ],
    ids=lambda a: f"{a.dtype}{a.shape}",
)
def test_arrays_arrive_unchanged(array: Any) -> None:
    record = _sent(_message(arrays=fl.ArrayRecord({"x": fl.Array(array)}))).content["arrays"]
    got = record["x"]
    assert (got.dtype, got.shape, got.stype) == (str(array.dtype), array.shape, "numpy.ndarray")
    np.testing.assert_array_equal(got.numpy(), array)


def test_records_of_all_types_arrive_in_order() -> None:
    foreign = fl.Array("float32", (2,), "torch.tensor", b"\x93NUMPY no")
    sent = _message(
        b=fl.ArrayRecord({"z": fl.Array(np.ones(2)), "a": foreign}),
        config=fl.ConfigRecord({"lr": 0.1, "blob": bytes(400_000), "names": ["a", "b"]}),
        a=fl.ArrayRecord({"z": fl.Array(np.zeros(3, np.int32))}),
        metrics=fl.MetricRecord({"n": 3, "f": [1.0, 2.0]}),
    )
    before = fl.message_bytes(sent)
    got = _sent(sent)
    assert fl.message_bytes(got) == before == fl.message_bytes(sent)
    assert list(got.content["b"]) == ["z", "a"]


def test_error_replies_arrive() -> None:
    reply = fl.error_reply(fl.set_metadata(_message()), 2, "why")
    got = _sent(reply)
    assert (got.error.code, got.error.reason) == (2, "why")
    assert got.metadata.reply_to_message_id == reply.metadata.reply_to_message_id


def test_arrays_become_tensors_and_the_header_is_small() -> None:
    arrays = {f"layer.{i}": fl.Array(np.ones((100, 100), np.float32)) for i in range(3)}
    frame = to_frame(_message(arrays=fl.ArrayRecord(arrays)), 3)
    packed = pack(frame)
    assert packed.dense_bytes == packed.payload_bytes == 3 * 40_000
    assert len(packed.header) < 1500
    assert (frame.kind, frame.round) == ("train", 3)


def test_encoding_applies_to_float32_only() -> None:
    values = np.linspace(-1, 1, 10)
    record = fl.ArrayRecord({"w": fl.Array(values.astype(np.float32)), "d": fl.Array(values)})
    got = _sent(_message(arrays=record), parse("fp16")).content["arrays"]
    assert 0 < np.abs(got["w"].numpy() - values).max() < 1e-3
    assert got["w"].numpy().dtype == np.float32
    np.testing.assert_array_equal(got["d"].numpy(), values)


def test_invalid_frames_are_refused() -> None:
    good = to_frame(_message(arrays=fl.ArrayRecord({"x": fl.Array(np.ones(2))})), 1)
    extra = {**good.tensors, "array 1": Tensor(np.ones(1))}
    for bad in (
        Message("train"),
        Message("train", fields={"message": b"\xff\xff"}),
        Message("train", fields=good.fields),
        Message("train", tensors=extra, fields=good.fields),
        Message("train", fields={"message": 3}),
        Message("train", fields={**good.fields, "extra": 1}, tensors=good.tensors),
    ):
        with pytest.raises(WireError, match="node a: "):
            from_frame(bad, "node a")


def test_round_is_the_group_id_or_the_server_round_of_the_configuration() -> None:
    config = fl.ConfigRecord({"server-round": 4})
    assert round_of(_message()) == 3
    assert round_of(fl.Message(fl.RecordDict({"config": config}), 12, "evaluate")) == 4
    assert round_of(fl.Message(fl.RecordDict(), 12, "query", group_id="a" * 20)) == 0
    assert round_of(fl.Message(fl.RecordDict(), 12, "query", group_id="9" * 20)) == 0
