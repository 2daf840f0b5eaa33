"""Packing and unpacking of messages: round trips, sizes, and the errors of invalid messages and frames."""

import dataclasses

import numpy as np
import pytest

from farshore.core.errors import WireError
from farshore.core.message import Encoded, Message, Tensor
from farshore.proto import frame_pb2 as pb
from farshore.wire.dtypes import DTYPES, lookup, name_of
from farshore.wire.encodings import Bits, Chain, EncodeError, Fp16, Int4, Ragged
from farshore.wire.limits import Limits
from farshore.wire.pack import inspect, pack, unpack


def joined(packed):
    return memoryview(b"".join(packed.payload))


def roundtrip(message):
    packed = pack(message)
    return unpack(packed.header, joined(packed))


def example():
    lengths = [3, 1, 2]
    rng = np.random.default_rng(0)
    return Message(
        "activation",
        round=1,
        step=2**40,
        micro=3,
        tensors={
            "labels": Tensor(np.array([0, 1, 1]), Bits(1)),
            "codes": Tensor(rng.standard_normal((3, 3, 4)).astype(np.float32), Chain(Ragged(lengths), Int4())),
            "half": Tensor(rng.standard_normal(5).astype(np.float32), Fp16()),
            "bytes": Tensor(np.arange(3, dtype=np.uint8)),
            "doubles": Tensor(rng.standard_normal((2, 2))),
        },
        fields={"b": True, "i": -(2**63), "r": 0.1, "s": "grün", "y": b"\0\xff"},
    )


def header_of(*entries, kind="activation"):
    table = [pb.TensorEntry(**{"name": "x", "dtype": pb.F32, **entry}) for entry in entries]
    return pb.FrameHeader(kind=kind, tensors=table).SerializeToString()


# ---- round trips ---------------------------------------------------------------------------------


def test_kind_position_and_fields_are_preserved_with_their_types():
    sent, got = example(), roundtrip(example())
    assert (got.kind, got.round, got.step, got.micro) == (sent.kind, sent.round, sent.step, sent.micro)
    assert got.fields == sent.fields
    assert {k: type(v) for k, v in got.fields.items()} == {k: type(v) for k, v in sent.fields.items()}


def test_numpy_scalars_are_sent_as_python_scalars():
    got = roundtrip(Message("control", fields={"a": np.float32(0.5), "b": np.int8(-3), "c": np.bool_(True)}))
    assert got.fields == {"a": 0.5, "b": -3, "c": True}
    assert got.fields["c"] is True


@pytest.mark.parametrize("name", [n for n in DTYPES if n != "bf16"])
def test_every_dtype_is_preserved(name):
    array = np.arange(24).reshape(2, 3, 4).astype(DTYPES[name][1])
    back = roundtrip(Message("weights", tensors={"x": Tensor(array)})).tensors["x"]
    assert back.array.dtype == array.dtype
    assert back.dtype is None
    assert np.array_equal(back.array, array)


def test_bf16_is_stored_as_uint16_and_keeps_its_name():
    bits = np.array([[0x3F80, 0xC000]], np.uint16)
    back = roundtrip(Message("weights", tensors={"x": Tensor(bits, dtype="bf16")})).tensors["x"]
    assert back.dtype == "bf16"
    assert np.array_equal(back.array, bits)
    assert roundtrip(Message("weights", tensors={"x": back})).tensors["x"].dtype == "bf16"


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24.0).reshape(4, 6).T,
        np.arange(24.0)[::-2],
        np.arange(24.0).reshape(4, 6)[:, 1:3],
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.float32(3).reshape(()),
        np.zeros((0, 3), np.int16),
        np.zeros((3, 0)),
        np.zeros(0, bool),
        np.arange(3, dtype=">i4"),
        np.broadcast_to(np.float16(1), (3, 2)),
    ],
    ids=[
        "transposed",
        "reversed",
        "sliced",
        "fortran",
        "zero-dim",
        "no rows",
        "no columns",
        "empty",
        "big",
        "broadcast",
    ],
)
def test_arrays_with_any_memory_layout_are_preserved(array):
    back = roundtrip(Message("weights", tensors={"x": Tensor(array)})).array("x")
    assert back.shape == array.shape
    assert back.dtype == array.dtype.newbyteorder("<")
    assert np.array_equal(back, array)


def test_raw_arrays_are_not_copied_in_either_direction():
    array = np.arange(1000.0)
    packed = pack(Message("weights", tensors={"x": Tensor(array)}))
    assert np.shares_memory(np.asarray(packed.payload[0]), array)
    buffer = bytearray(joined(packed))
    back = unpack(packed.header, memoryview(buffer)).array("x")
    assert np.shares_memory(back, np.frombuffer(buffer, np.uint8))
    assert not back.flags.writeable


def test_raw_arrays_start_at_multiples_of_their_element_size_without_padding():
    names = list(DTYPES)
    tensors = {n: Tensor(np.ones(3, DTYPES[n][1]), dtype=n) for n in names}
    packed = pack(Message("weights", tensors={**tensors, "codes": Tensor(np.ones((3, 3)), Int4())}))
    assert packed.payload_bytes == sum(3 * DTYPES[n][1].itemsize for n in names) + 8 + 5
    message = unpack(packed.header, joined(packed))
    assert all(message.array(n).flags.aligned for n in names)


def test_the_same_message_always_gives_the_same_bytes():
    sent = example()
    shuffled = dataclasses.replace(
        sent,
        tensors=dict(reversed(sent.tensors.items())),
        fields=dict(reversed(sent.fields.items())),
    )
    assert pack(sent).header == pack(shuffled).header
    assert joined(pack(sent)) == joined(pack(shuffled))


# ---- sizes ---------------------------------------------------------------------------------------


def test_dense_and_payload_sizes_match_the_arrays_and_the_encoded_parts():
    packed = pack(example())
    assert packed.dense_bytes == 3 * 8 + 36 * 4 + 5 * 4 + 3 + 4 * 8
    assert packed.payload_bytes == len(joined(packed))
    # labels 1 + 1, lengths 1 + 1, scales 2 + 2·4, codes 6·4/2, half 5·2, bytes 3, doubles 32
    assert packed.payload_bytes == 2 + 2 + 10 + 12 + 10 + 3 + 32


def test_each_encoding_is_listed_once_in_the_order_of_the_table():
    assert pack(example()).encoding == "raw,fp16,ragged|int4,bits"
    assert pack(Message("control")).encoding == "raw"


def test_inspect_returns_the_same_values_without_the_payload():
    packed, sent = pack(example()), example()
    summary = inspect(packed.header)
    assert (summary.kind, summary.round, summary.step, summary.micro) == (
        sent.kind,
        sent.round,
        sent.step,
        sent.micro,
    )
    assert summary.dense_bytes == packed.dense_bytes
    assert summary.payload_bytes == packed.payload_bytes
    assert summary.encoding == packed.encoding


def test_framing_overhead_is_under_two_percent_at_sixteen_kilobytes():
    packed = pack(Message("activation", step=100, tensors={"codes": Tensor(np.ones((512, 8), np.float32))}))
    assert packed.payload_bytes == 16_384
    prefix = 64  # more than the fixed part of a frame
    assert len(packed.header) + prefix < 0.02 * packed.payload_bytes


# ---- errors of the sender ------------------------------------------------------------------------


class Foreign:
    """An encoding that receivers do not know."""

    name = "zip"
    lossy = False

    def encode(self, array):
        return Encoded(b"", array)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (Message(""), "needs a kind"),
        (Message("k" * 300), "300 bytes, the limit is 256"),
        (Message("control", step=-1), "non-negative"),
        (Message("control", micro=2**32), "non-negative"),
        (Message("control", step=1.5), "non-negative"),
        (Message("control", fields={"x": 2**63}), "field 'x' has the invalid value 9223372036854775808"),
        (Message("control", fields={"x": None}), "field 'x' is a NoneType"),
        (Message("control", fields={"x": "\ud800"}), "field 'x'"),
        (Message("control", fields={"": 1}), "name is empty"),
        (Message("weights", tensors={"": Tensor(np.zeros(1))}), "name is empty"),
        (Message("weights", tensors={"\ud800": Tensor(np.zeros(1))}), "not valid Unicode"),
        (
            Message("weights", tensors={"x": Tensor(np.zeros(1, complex))}),
            "'weights' message, tensor 'x': .*complex128",
        ),
        (
            Message("weights", tensors={"x": Tensor(np.array([object()]))}),
            "tensor 'x': .*object is not supported",
        ),
        (Message("weights", tensors={"x": Tensor(np.zeros(1), dtype="bf16")}), "'bf16' is stored as uint16"),
        (Message("weights", tensors={"x": Tensor(np.zeros(1), dtype="f8e4")}), "'f8e4' is unknown"),
        (Message("weights", tensors={"x": Tensor(np.zeros((1,) * 9))}), "9 axes exceed the limit of 8"),
        (Message("weights", tensors={"x": Tensor(np.zeros(1), Foreign())}), "unknown encoding 'zip'"),
        (
            Message("weights", tensors={"x": Tensor(np.array([[np.nan]]), Int4())}),
            "tensor 'x': 'int4' cannot encode",
        ),
    ],
)
def test_invalid_messages_are_errors_of_the_sender(message, text):
    with pytest.raises(WireError, match=text):
        pack(message)


def test_an_array_that_cannot_be_encoded_is_an_encode_error():
    with pytest.raises(EncodeError, match="'activation' message, tensor 'x': 'bits' encodes"):
        pack(Message("activation", tensors={"x": Tensor(np.zeros(2), Bits(1))}))


TWO = {"a": Tensor(np.zeros(8, np.float32)), "b": Tensor(np.zeros(8, np.float32))}


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        (Limits(header_bytes=20), "header bytes exceed the limit of 20"),
        (Limits(payload_bytes=63), "payload bytes exceed the limit of 63"),
        (Limits(dense_bytes=63), "64 decoded bytes exceed the limit of 63"),
        (Limits(dense_bytes=31), r"shape \[8\] exceeds the limit of 31 bytes"),
        (Limits(tensors=1), "2 tensors"),
        (Limits(fields=0), "1 fields"),
        (Limits(rank=0), "1 axes exceed the limit of 0"),
        (Limits(name_bytes=4), "the limit is 4"),
    ],
)
def test_sender_and_receiver_check_the_limits(limits, text):
    message = Message("weights", tensors=TWO, fields={"f": 1})
    packed = pack(message)
    with pytest.raises(WireError, match=text):
        pack(message, limits)
    with pytest.raises(WireError, match=text):
        unpack(packed.header, joined(packed), limits)


# ---- errors of the receiver ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "payload", "text"),
    [
        (b"\xff\xff", b"", "cannot be parsed"),
        (pb.FrameHeader().SerializeToString(), b"", "has no kind"),
        (header_of({"dtype": 0, "length": 4}), b"", "tensor 'x': element type number 0"),
        (header_of({"dtype": 99, "length": 4}), b"", "element type number 99"),
        (header_of({"encoding": "zip", "length": 4}), b"", "tensor 'x': unknown encoding 'zip'"),
        (header_of({"name": "", "length": 4}), b"", "name is empty"),
        (header_of({"name": "n" * 257, "length": 4}), b"", "257 bytes, the limit is 256"),
        (header_of({"encoding": "ragged|" * 60, "length": 4}), b"", "the limit is 256"),
        (header_of({"length": 4}, {"length": 4, "offset": 4}), bytes(8), "duplicate name"),
        (header_of({"shape": [1] * 9, "length": 4}), bytes(4), "9 axes"),
        (header_of({"shape": [2**63, 2**63, 2], "length": 4}), bytes(4), "exceeds the limit"),
        (header_of({"shape": [0, 2**62], "length": 0}), b"", "exceeds the limit"),
        (header_of({"shape": [2**29], "length": 0, "encoding": "int4"}), b"", "scales require|bytes, expected"),
        (header_of({"shape": [2], "length": 4}), bytes(4), "4 bytes, expected 8"),
        (header_of({"length": 8}), bytes(8), "8 bytes, expected 4"),
        (header_of({"length": 4}), bytes(3), "the payload has 3 bytes, the tensor table describes 4"),
        (header_of({"length": 4}), bytes(5), "the payload has 5 bytes, the tensor table describes 4"),
        (header_of(), bytes(1), "the payload has 1 bytes, the tensor table describes 0"),
        (header_of({"length": 4, "side": 5}), bytes(4), "5 bytes of side data do not fit in 4"),
        (header_of({"length": 2**64 - 1}), bytes(4), "payload bytes exceed"),
        (header_of({"length": 4}, {"name": "y", "offset": 2, "length": 4}), bytes(6), "overlaps the previous"),
        (header_of({"length": 4, "offset": 4}, {"name": "y", "length": 4}), bytes(8), "leaves a gap"),
        (
            header_of({"length": 4}, {"name": "y", "offset": 8, "length": 4}),
            bytes(12),
            "leaves a gap after 4",
        ),
        (
            header_of({"length": 4}, {"name": "y", "length": 4}),
            bytes(4),
            "tensor 'y': it starts at byte 0 and overlaps",
        ),
        (header_of({"dtype": pb.BOOL, "length": 1}), b"\2", "neither 0 nor 1"),
    ],
)
def test_invalid_frames_are_errors(header, payload, text):
    with pytest.raises(WireError, match=text):
        unpack(header, memoryview(payload))


def test_a_field_without_a_value_is_an_error():
    header = pb.FrameHeader(kind="control")
    header.fields["x"].SetInParent()
    with pytest.raises(WireError, match="field 'x' has no value"):
        unpack(header.SerializeToString(), memoryview(b""))


def test_dtype_names_and_numbers_are_one_to_one():
    assert {number for number, _ in DTYPES.values()} == set(pb.Dtype.values()) - {0}
    for name, (number, dtype) in DTYPES.items():
        assert lookup(number) == (name, dtype)
        assert name_of(dtype, name) == name
        assert dtype.itemsize == 1 or dtype == dtype.newbyteorder("<")
