"""Errors of encodings: invalid settings, arrays that cannot be encoded, and bytes that no encoder produces."""

import math

import numpy as np
import pytest

from farshore.core.errors import ConfigError, WireError
from farshore.wire.encodings import (
    ArrayLayout,
    Bits,
    Chain,
    EncodeError,
    Fp16,
    Int2,
    Int4,
    Int8,
    LowRank,
    Ragged,
    Raw,
    TopK,
    decode,
    parse,
)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("encoding", [Int8(), Int4(scales=[1, 1]), Int4(groups=[3]), Int2(), LowRank(1), TopK(0.5)])
def test_non_finite_values_are_errors(encoding, bad):
    x = np.ones((3, 2), np.float32) if encoding.name != "lowrank" else np.ones((30, 20), np.float32)
    x[1, 1] = bad
    with pytest.raises(EncodeError, match="finite"):
        encoding.encode(x)


def test_values_and_scales_beyond_float32_are_errors(normal):
    with pytest.raises(EncodeError, match="not finite in float32"):
        Int8().encode(np.full((2, 2), 1e300))
    with pytest.raises(EncodeError, match="too large"):
        Int4(grid="uniform16", scales=1e39).encode(normal(2, 2))
    with pytest.raises(EncodeError, match="does not match"):
        Int4(groups=[2], scales=1e-36).encode(np.full((2, 2), 3e38, np.float32))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Int4(rounding="stochastic"), "requires a seed"),
        (lambda: Int4(rounding="up"), "rounding must be"),
        (lambda: Int4(grid="uniform"), "the grid must be"),
        (lambda: Int8(scales=[1.0, np.nan]), "finite"),
        (lambda: Int8(scales=[-1.0]), "non-negative"),
        (lambda: Ragged([[1, 2]]), "list of integers"),
        (lambda: Ragged([-1]), "must be 0 to"),
        (lambda: Ragged([1.5]), "list of integers"),
        (lambda: LowRank(0), "1 to 65535"),
        (lambda: Bits(0), "1 to 32"),
        (lambda: TopK(0), "above 0"),
        (lambda: TopK(1.5), "at most 1"),
        (lambda: TopK(math.nan), "at most 1"),
        (lambda: Chain(Int4(), Raw()), "must be last in a chain"),
        (lambda: Chain(Raw()), "two to four"),
    ],
)
def test_invalid_settings_are_errors_of_the_constructor(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    ("encoding", "array", "message"),
    [
        (Int4(), np.zeros((2, 2), np.int64), "floating-point arrays, not int64"),
        (Fp16(), np.zeros(2, np.uint16), "floating-point"),
        (Int4(scales=[1, 2, 3]), np.zeros((2, 2), np.float32), "3 scales for 2 channels"),
        (Int4(groups=[1, 2]), np.zeros((2, 2), np.float32), "3 rows in total for 2 rows"),
        (Ragged([1, 2]), np.zeros((3, 2), np.float32), "does not fit"),
        (Ragged([1, 3]), np.zeros((2, 2), np.float32), "does not fit"),
        (Bits(2), np.array([0, 4]), "encodes 0 to 3, the array has values from 0 to 4"),
        (Bits(2), np.array([-1, 1]), "values from -1 to 1"),
        (Bits(2), np.array([0.5]), "integers and booleans"),
        (TopK(0.5), np.array([1, 2]), "floating-point arrays, not int64"),
    ],
)
def test_arrays_that_do_not_match_the_settings_are_errors(encoding, array, message):
    with pytest.raises(EncodeError, match=message):
        encoding.encode(array)


@pytest.mark.parametrize("name", ["", "int5", "ragged", "bits", "lowrank:x", "int4:2", "int4|ragged", "topk", "topk:2"])
def test_invalid_names_are_errors_of_parse(name):
    with pytest.raises(ConfigError):
        parse(name, lengths=[1] if "|" in name else None)


@pytest.mark.parametrize(
    ("name", "side", "body", "layout", "message"),
    [
        ("zip", b"", b"", ArrayLayout(np.dtype("f4"), ()), "unknown encoding 'zip'"),
        ("int4|raw", b"", b"", ArrayLayout(np.dtype("f4"), ()), "cannot precede"),
        ("ragged|" * 4 + "raw", b"", b"", ArrayLayout(np.dtype("f4"), ()), "more than 4 stages"),
        ("raw", b"x", b"", ArrayLayout(np.dtype("f4"), (0,)), "side data of 'raw' has 1 bytes, expected 0"),
        ("raw", b"", bytes(5), ArrayLayout(np.dtype("f4"), (1,)), "5 bytes, expected 4"),
        ("raw", b"", b"\2", ArrayLayout(np.dtype("?"), (1,)), "neither 0 nor 1"),
        ("fp16", b"", bytes(2), ArrayLayout(np.dtype("i4"), (1,)), "not int32"),
        ("int4", b"\0", b"", ArrayLayout(np.dtype("f4"), (2, 2)), "2 scales require 6"),
        ("int4", b"\x80\0" + bytes(4), bytes(2), ArrayLayout(np.dtype("f4"), (2, 2)), "unknown flags"),
        ("int4", b"\2\0" + bytes(4), bytes(2), ArrayLayout(np.dtype("f4"), (2, 2)), "unknown flags"),
        ("int4", bytes(6), bytes(3), ArrayLayout(np.dtype("f4"), (2, 2)), "3 bytes, expected 2"),
        ("int4", bytes(7), bytes(2), ArrayLayout(np.dtype("f4"), (2, 2)), "7 bytes, expected 6"),
        ("int8", b"\0\0\0\x7c", bytes(2), ArrayLayout(np.dtype("f4"), (2, 1)), "infinite"),
        ("int8", b"\0\0\0\x80", bytes(2), ArrayLayout(np.dtype("f4"), (2, 1)), "negative"),
        ("int8", b"\0\x7f\xff\x7b", bytes(2), ArrayLayout(np.dtype("f4"), (2, 1)), "infinite"),
        (
            "int8",
            b"\1\0\0\0" + b"\xff" * 4,
            bytes(2),
            ArrayLayout(np.dtype("f4"), (2, 1)),
            "4294967295 sentence scales",
        ),
        ("int8", b"\3\0\0\0", bytes(2), ArrayLayout(np.dtype("f4"), (2, 1)), "no outer encoding"),
        ("int8", b"\1\0\0\0\1\0\0\0\x08\x05\xff", bytes(2), ArrayLayout(np.dtype("f4"), (2, 1)), "add up to 5"),
        ("ragged", b"\x08\x03", b"", ArrayLayout(np.dtype("f4"), (1, 2)), "length of 3"),
        ("ragged", b"\0", b"", ArrayLayout(np.dtype("f4"), (1, 2)), "bit width 0"),
        ("ragged", b"\x08", b"", ArrayLayout(np.dtype("f4"), (1, 2)), "within the lengths"),
        ("ragged", b"", b"", ArrayLayout(np.dtype("f4"), (1, 2)), "before the lengths"),
        ("ragged", b"\1", b"", ArrayLayout(np.dtype("f4"), (2,)), "two axes"),
        ("ragged", b"\1", b"", ArrayLayout(np.dtype("u1"), (1 << 21, 1)), "exceed the limit"),
        ("lowrank", b"\1", b"", ArrayLayout(np.dtype("f4"), (9, 9)), "before the rank"),
        ("lowrank", b"\x09\0", b"", ArrayLayout(np.dtype("f4"), (9, 9)), "does not shrink"),
        ("topk", b"\0", b"", ArrayLayout(np.dtype("f4"), (9,)), "before the number"),
        ("topk", bytes(4), b"", ArrayLayout(np.dtype("i4"), (9,)), "not int32"),
        ("topk", b"\x0a\0\0\0", b"", ArrayLayout(np.dtype("f4"), (9,)), "cannot send 10 of 9"),
        ("topk", b"\2\0\0\0", bytes(8), ArrayLayout(np.dtype("f4"), (9,)), "within the indices of 2"),
        ("topk", b"\2\0\0\0\x33", bytes(8), ArrayLayout(np.dtype("f4"), (9,)), "not ascending"),
        ("topk", b"\2\0\0\0\x93", bytes(8), ArrayLayout(np.dtype("f4"), (9,)), "not ascending and below 9"),
        ("topk", b"\3\0\0\0\3\0", bytes(12), ArrayLayout(np.dtype("f4"), (9,)), "marks 2 elements, expected 3"),
        ("topk", b"\2\0\0\0\x31\0", bytes(8), ArrayLayout(np.dtype("f4"), (9,)), "side data of 'raw'"),
        ("topk", b"\2\0\0\0\x31", bytes(4), ArrayLayout(np.dtype("f4"), (9,)), "4 bytes, expected 8"),
        ("bits", b"\0", b"", ArrayLayout(np.dtype("i4"), (9,)), "does not fit int32"),
        ("bits", b"\x09", bytes(9), ArrayLayout(np.dtype("i1"), (8,)), "does not fit int8"),
        ("bits", b"\1", bytes(1), ArrayLayout(np.dtype("f4"), (8,)), "integers and booleans"),
    ],
)
def test_bytes_that_no_encoder_produces_are_errors(name, side, body, layout, message):
    with pytest.raises(WireError, match=message):
        decode(name, memoryview(side), memoryview(body), layout)
