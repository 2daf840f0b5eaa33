"""Property tests: arrays survive encoding, and hostile frames are read or raise a WireError, in bounded memory."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from farshore.core.errors import WireError
from farshore.core.message import Message, Tensor
from farshore.proto import frame_pb2 as pb
from farshore.wire.dtypes import DTYPES
from farshore.wire.encodings import Bf16, Bits, Chain, EncodeError, Fp16, Int2, Int4, Int8, LowRank, Ragged, Raw, TopK
from farshore.wire.encodings.registry import LEAVES, TRANSFORMS
from farshore.wire.limits import Limits
from farshore.wire.pack import inspect, pack, unpack

SMALL = Limits(header_bytes=4096, payload_bytes=1 << 16, dense_bytes=1 << 16, tensors=8, fields=8)
NUMPY_DTYPES = sorted({str(c) for _, c in DTYPES.values()})
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6)


def roundtrip(tensor):
    packed = pack(Message("t", tensors={"x": tensor}))
    payload = b"".join(packed.payload)
    assert len(payload) == packed.payload_bytes
    if tensor.encoding is not None:
        assert packed.payload_bytes == tensor.encoding.size(tensor.array.shape, tensor.array.dtype)
    return unpack(packed.header, memoryview(payload)).array("x")


@given(st.sampled_from(NUMPY_DTYPES).flatmap(lambda d: hnp.arrays(np.dtype(d), SHAPES)), st.booleans())
@settings(max_examples=150, deadline=None)
def test_any_raw_array_is_preserved_bit_for_bit(array, explicit):
    back = roundtrip(Tensor(array, Raw() if explicit else None))
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()


@st.composite
def lossy_cases(draw):
    """A float array and an encoding for it."""
    dtype = draw(st.sampled_from([np.float16, np.float32, np.float64]))
    top = {2: 60000.0, 4: 2.0**123, 8: 2.0**123}[np.dtype(dtype).itemsize]
    values = st.floats(-top, top, width=np.dtype(dtype).itemsize * 8)
    array = draw(hnp.arrays(dtype, SHAPES, elements=values))
    rows = int(np.prod(array.shape[:-1])) if array.ndim > 1 else array.size
    cuts = sorted(draw(st.lists(st.integers(0, rows), max_size=3)))
    groups = draw(st.sampled_from([None, np.diff([0, *cuts, rows])]))
    options = {"rounding": draw(st.sampled_from(["nearest", "stochastic"])), "seed": 1, "groups": groups}
    options["scales"] = draw(st.sampled_from([None, 1e-3, 1.0, 1e4]))
    grid = draw(st.sampled_from(["mid_tread", "uniform16"]))
    lossy = [
        Fp16(),
        Bf16(),
        Int8(**options),
        Int4(grid=grid, **options),
        Int2(**options),
        LowRank(draw(st.integers(1, 3))),
        TopK(draw(st.floats(0, 1, exclude_min=True))),
    ]
    return array, draw(st.sampled_from(lossy))


@given(lossy_cases())
@settings(max_examples=400, deadline=None)
def test_any_float_array_is_decoded_within_the_bound(case):
    array, encoding = case
    before = array.copy()
    try:
        back = roundtrip(Tensor(array, encoding))
    except EncodeError as error:
        expected = any(
            s in error.message
            for s in ("exceeds the range", "exceed the range", "does not match", "too large", "infinity")
        )
        assert expected, error  # noqa: PT017
        return
    assert np.array_equal(array, before)
    assert back.shape == array.shape
    assert back.dtype == array.dtype
    error = np.abs(back.astype(np.float64) - array.astype(np.float64))
    assert (error <= encoding.error_bound(array) * (1 + 1e-6)).all()


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_any_ragged_chain_restores_rows_and_zero_padding(data):
    lengths = data.draw(st.lists(st.integers(0, 7), min_size=0, max_size=6))
    longest = max([0, *lengths]) + data.draw(st.integers(0, 3))
    rest = data.draw(hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=4))
    shape = (len(lengths), longest, *rest)
    array = data.draw(hnp.arrays(np.float32, shape, elements=st.floats(-100, 100, width=32)))
    mask = np.arange(longest) < np.array(lengths, int)[:, None]
    array[~mask] = 0
    encoding = Chain(Ragged(lengths), data.draw(st.sampled_from([Raw(), Fp16(), Int8(), Int4(), LowRank(1)])))
    back = roundtrip(Tensor(array, encoding))
    assert (np.abs(back - array) <= encoding.error_bound(array) * (1 + 1e-6)).all()
    assert not back[~mask].any()


@given(st.integers(1, 32), st.data())
@settings(max_examples=60, deadline=None)
def test_any_integers_are_preserved_by_bits(width, data):
    array = data.draw(hnp.arrays(np.int64, SHAPES, elements=st.integers(0, 2**width - 1)))
    assert np.array_equal(roundtrip(Tensor(array, Bits(width))), array)


# ---- hostile bytes -------------------------------------------------------------------------------


def frames():
    """One valid frame per encoding, and one with several tensors."""
    x = np.random.default_rng(0).standard_normal((4, 6, 8)).astype(np.float32)
    lengths, rows = np.array([6, 2, 0, 5]), [6, 6, 6, 6]
    cases = [
        Raw(), Fp16(), Bf16(), Int8(), Int2(), LowRank(2), Ragged(lengths),
        Int4(groups=rows), Int4(grid="uniform16", rounding="stochastic", seed=1),
        Chain(Ragged(lengths), Int4(groups=lengths)), Chain(Ragged(lengths), LowRank(1), Int8()),
        TopK(0.02), TopK(0.5), Chain(TopK(0.1), Int8()),
    ]  # fmt: skip
    labels = Tensor(np.array([1, 0, 3]), Bits(2))
    mask = Tensor(np.array([True, False]))
    fields = {"loss": 0.5, "why": "because", "n": -3}
    messages = [Message("activation", step=3, tensors={"x": Tensor(x, e)}) for e in cases]
    messages.append(Message("gradient", tensors={"x": Tensor(x), "y": labels, "m": mask}, fields=fields))
    messages.append(Message("mixed", tensors={"x": Tensor(x, cases[-2]), "y": labels}))
    packed = [pack(m) for m in messages]
    return [(p.header, b"".join(p.payload)) for p in packed]


FRAMES = frames()


def read_or_reject(header, payload):
    """Unpack a frame with the limits SMALL; returns the peak memory."""
    tracemalloc.start()
    try:
        message = unpack(header, memoryview(payload), SMALL)
        assert sum(t.array.nbytes for t in message.tensors.values()) <= SMALL.dense_bytes
        assert inspect(header, SMALL).payload_bytes == len(payload)
    except WireError:
        pass  # the only allowed error
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


#: The worst case is one byte per row of a ragged array: two int64 lengths for each byte of the result.
MAX_PEAK_BYTES = 20 * SMALL.dense_bytes

EDIT = st.tuples(st.integers(0, 1 << 16), st.integers(0, 255), st.sampled_from(["set", "drop", "insert", "cut"]))


def mutate(data, edits):
    data = bytearray(data)
    for where, value, how in edits:
        at = where % (len(data) + 1)
        if how == "insert":
            data[at:at] = bytes([value])
        elif how == "cut":
            del data[at:]
        elif at < len(data):
            data[at : at + 1] = bytes([value]) if how == "set" else b""
    return bytes(data)


@given(st.sampled_from(FRAMES), st.lists(EDIT, max_size=4), st.lists(EDIT, max_size=4))
@settings(max_examples=1500, deadline=None)
def test_mutated_frames_are_read_or_rejected_within_the_memory_limit(frame, header_edits, payload_edits):
    peak = read_or_reject(mutate(frame[0], header_edits), mutate(frame[1], payload_edits))
    assert peak < MAX_PEAK_BYTES


NAMES = st.one_of(
    st.sampled_from([*LEAVES, *TRANSFORMS, ""]),
    st.lists(st.sampled_from([*LEAVES, *TRANSFORMS]), min_size=1, max_size=3).map("|".join),
)
NUMBERS = st.one_of(st.integers(0, 12), st.sampled_from([2**16, 2**31, 2**32, 2**63, 2**64 - 1]))


@given(
    st.integers(0, 15),
    st.lists(NUMBERS, max_size=4),
    NAMES,
    st.binary(max_size=64),
    st.one_of(st.none(), NUMBERS),
)
@settings(max_examples=1500, deadline=None)
def test_arbitrary_table_entries_are_read_or_rejected_within_the_memory_limit(dtype, shape, encoding, payload, side):
    side = min(4, len(payload)) if side is None else side
    entry = pb.TensorEntry(name="x", dtype=dtype, shape=shape, encoding=encoding, length=len(payload), side=side)
    header = pb.FrameHeader(kind="k", tensors=[entry]).SerializeToString()
    assert read_or_reject(header, payload) < MAX_PEAK_BYTES


@given(st.binary(max_size=200), st.binary(max_size=50))
@settings(max_examples=300, deadline=None)
def test_random_headers_are_read_or_rejected(header, payload):
    assert read_or_reject(header, payload) < MAX_PEAK_BYTES


def test_a_tiny_frame_that_announces_a_huge_tensor_allocates_no_memory_for_it():
    for encoding, side in (
        ("", b""),
        ("ragged", b"\1\0"),
        ("ragged|int4", b"\1\0\0\0"),
        ("bits", b"\1"),
        ("lowrank", b"\1\0"),
        ("topk", b"\0\0\0\0"),
        ("topk", b"\xff\xff\xff\xff"),
        ("topk|int8", b"\1\0\0\0"),
    ):
        for shape in ([1, 2**40], [2**40], [2**20, 2**20], [2**32, 2**32, 2**32]):
            entry = pb.TensorEntry(
                name="x", dtype=pb.F32, shape=shape, encoding=encoding, length=len(side), side=len(side)
            )
            header = pb.FrameHeader(kind="k", tensors=[entry]).SerializeToString()
            assert read_or_reject(header, side) < 1 << 17


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_decoding_uses_a_small_multiple_of_the_memory_of_its_result(dtype):
    x = np.random.default_rng(0).standard_normal((1 << 12, 64)).astype(dtype)
    groups = np.full(1 << 8, 1 << 4)
    quantizers = (Int8(), Int4(), Int2(), Int4(groups=groups))
    for encoding in (Raw(), Fp16(), Bf16(), LowRank(4), Ragged([64] * 4096), TopK(0.01), *quantizers):
        packed = pack(Message("t", tensors={"x": Tensor(x, encoding)}))
        payload = memoryview(b"".join(packed.payload))
        tracemalloc.start()
        unpack(packed.header, payload)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < (4.5 if dtype == np.float16 else 2.5) * x.nbytes


def test_the_limit_applies_to_the_sum_of_all_tensors():
    """Lengths of zero need no payload: without the sum, the padding of every tensor would be allocated."""
    entries = [
        pb.TensorEntry(name=f"x{i}", dtype=pb.F32, shape=[1, 2**13], encoding="ragged", offset=2 * i, length=2, side=2)
        for i in range(4)
    ]
    header = pb.FrameHeader(kind="k", tensors=entries).SerializeToString()
    assert read_or_reject(header, b"\1\0" * 4) < 1 << 17
