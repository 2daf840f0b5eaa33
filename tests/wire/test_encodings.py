"""Encodings except quantizers: exact sizes, errors within the bound, chains, parsing of names."""

import math

import numpy as np
import pytest

from farshore.wire.encodings import (
    Bf16,
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
    parse,
    prepare,
)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_half_and_double_precision_arrays_keep_their_dtype(dtype, roundtrip, normal):
    x = normal(9, 5).astype(dtype)
    for encoding in (Int8(), Int4(), Int4(grid="uniform16"), Fp16(), Bf16(), LowRank(2), TopK(0.3)):
        back = roundtrip(encoding, x)
        assert back.dtype == dtype
        assert (np.abs(back.astype(np.float64) - x) <= encoding.error_bound(x)).all()
    assert np.isfinite(roundtrip(Int4(grid="uniform16"), np.full((2, 2), 65504, np.float16))).all()


# ---- half precision ------------------------------------------------------------------------------


def test_fp16_preserves_infinities_and_rejects_overflow(roundtrip):
    x = np.array([np.inf, -np.inf, np.nan, 65504.0, 1e-8, -0.0], np.float32)
    back = roundtrip(Fp16(), x)
    assert np.array_equal(back[:4], x[:4], equal_nan=True)
    with pytest.raises(EncodeError, match="65,504"):
        Fp16().encode(np.array([65520.0], np.float32))


def test_fp16_rounds_as_numpy_does_at_every_magnitude():
    bits = np.random.default_rng(0).integers(0, 2**32, 300_000, dtype=np.uint32)
    # Halfway points, from the smallest subnormal to the largest number.
    ties = np.arange(0x33000000, 0x477FF000, 0x1000, dtype=np.uint32)
    x = np.concatenate([bits, ties, ties + 1, ties - 1, ties | 0x80000000, [0, 1, 0x80000000]])
    x = x.astype(np.uint32).view(np.float32)
    x = x[np.abs(x) < 65520]
    assert len(x) > 400_000
    with np.errstate(under="ignore"):
        expected = x.astype(np.float16)
    assert np.array_equal(Fp16().encode(x).body.view(np.uint16), expected.view(np.uint16))


def test_bf16_rounds_to_nearest_even_and_keeps_nan(roundtrip):
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0xBF818000], np.uint32)
    body = Bf16().encode(bits.view(np.float32)).body
    assert [hex(b) for b in body] == ["0x3f80", "0x3f82", "0x3f81", "0x3f80", "0xbf82"]
    special = np.array([0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0x7F800000, 0xFF800000, 0, 0x80000000], np.uint32)
    back = roundtrip(Bf16(), special.view(np.float32))
    assert np.isnan(back[:3]).all()
    assert back[3] == np.inf
    assert back[4] == -np.inf
    assert np.signbit(back[5:]).tolist() == [False, True]
    with pytest.raises(EncodeError, match="infinity"):
        Bf16().encode(np.array([3.4e38], np.float32))


# ---- ragged, bits, low rank ----------------------------------------------------------------------


@pytest.mark.parametrize("longest", [9, 40_000, 70_000])
def test_ragged_sends_no_padding_and_restores_zeros_there(longest, roundtrip, padded):
    lengths = [3, 0, 9, 1, 9]
    x = padded(lengths, 2, longest=longest)
    encoded = Ragged(lengths).encode(x)
    assert encoded.body.shape == (22, 2)
    assert len(encoded.side) == 1 + math.ceil(5 * 4 / 8)  # the longest, 9, needs four bits
    assert np.array_equal(roundtrip(Ragged(lengths), x), x)


def test_ragged_replaces_values_in_the_padding_by_zeros(roundtrip):
    x = np.ones((2, 3), np.int64)
    assert np.array_equal(roundtrip(Ragged([1, 3]), x), [[1, 0, 0], [1, 1, 1]])


@pytest.mark.parametrize("width", [1, 2, 3, 7, 8, 13, 16, 31, 32])
@pytest.mark.parametrize("count", [0, 1, 9, 70_001])
def test_bits_are_lossless_at_every_width(width, count, roundtrip):
    x = np.random.default_rng(width).integers(0, 2**width, count, dtype=np.int64)
    encoded = Bits(width).encode(x)
    assert encoded.body.nbytes == math.ceil(count * width / 8)
    assert np.array_equal(roundtrip(Bits(width), x), x)


def test_bits_encode_boolean_masks(roundtrip):
    mask = np.random.default_rng(0).random((5, 7)) > 0.5
    assert np.array_equal(roundtrip(Bits(1), mask), mask)


@pytest.mark.parametrize("shape", [(120, 60), (60, 120), (10, 12, 60)])
def test_lowrank_is_within_five_percent_of_the_svd_for_decaying_spectra(shape, roundtrip):
    rng = np.random.default_rng(1)
    m, n = math.prod(shape[:-1]), shape[-1]
    u, v = (np.linalg.qr(rng.standard_normal((k, min(m, n))))[0] for k in (m, n))
    for decay in (0.5, 1.0, 2.0):
        sigma = np.arange(1, min(m, n) + 1) ** -decay
        x = (u * sigma @ v.T).reshape(shape).astype(np.float32)
        best = math.sqrt((sigma[8:] ** 2).sum())
        encoding = LowRank(8)
        residual = np.linalg.norm(roundtrip(encoding, x) - x)
        assert best * 0.999 <= residual <= best * 1.05
        assert np.isclose(encoding.error_bound(x).item(), residual, rtol=1e-3)


def test_lowrank_of_a_matrix_with_that_rank_is_exact_up_to_rounding(roundtrip, normal):
    x = normal(50, 3) @ normal(3, 40, seed=1)
    assert np.abs(roundtrip(LowRank(3), x) - x).max() < 1e-5 * np.abs(x).max()
    assert LowRank(3).size((50, 40)) == 2 + 3 * 90 * 4


def test_lowrank_does_not_factorize_arrays_that_it_would_not_shrink(roundtrip, normal):
    for x in (normal(10, 4), normal(7), np.zeros((0, 4), np.float32), normal(4, 1)):
        assert np.array_equal(roundtrip(LowRank(3), x), x)


def test_lowrank_of_tiny_and_huge_values_is_finite(roundtrip, normal):
    for factor in (1e-36, 1e37):
        x = (normal(40, 2) @ normal(2, 30, seed=1)).clip(-8, 8) * np.float32(factor)
        assert np.linalg.norm((roundtrip(LowRank(6), x) - x) / factor) < 0.6 * np.linalg.norm(x / factor)


# ---- top-k ---------------------------------------------------------------------------------------


def test_topk_sends_the_largest_magnitudes_and_zeros_for_the_rest(roundtrip):
    x = np.array([[0.5, -3.0, 0.1], [2.0, -0.2, 0.0]], np.float32)
    assert np.array_equal(roundtrip(TopK(0.3), x), [[0, -3, 0], [2, 0, 0]])
    assert np.array_equal(roundtrip(TopK(1.0), x), x)
    assert np.array_equal(roundtrip(TopK(1e-9), x), [[0, -3, 0], [0, 0, 0]])  # at least one element


def test_topk_prefers_lower_indices_among_equal_magnitudes(roundtrip):
    x = np.array([1, -1, 1, 2, -1, 1], np.float32)
    assert np.array_equal(roundtrip(TopK(0.5), x), [1, -1, 0, 2, 0, 0])


@pytest.mark.parametrize(
    ("n", "fraction", "side"),
    [(24_618, 0.01, 4 + math.ceil(247 * 15 / 8)), (1000, 0.5, 4 + 125), (1, 1, 4 + 1), (2**16, 2**-16, 4 + 2)],
)
def test_topk_indices_take_the_bits_of_the_largest_index_or_a_bitmap(n, fraction, side, roundtrip, normal):
    x = normal(n)
    encoded = TopK(fraction).encode(x)
    assert len(encoded.side) == side
    assert encoded.body.size == math.ceil(n * fraction)
    back = roundtrip(TopK(fraction), x)
    sent = back != 0
    assert sent.sum() == encoded.body.size
    assert np.array_equal(back[sent], x[sent])
    assert np.abs(x[~sent]).max(initial=0) <= np.abs(x[sent]).min()


@pytest.mark.parametrize("last", [Fp16(), Bf16(), Int8(), Int4()])
def test_topk_values_may_be_encoded_by_another_encoding(last, roundtrip, normal):
    x = normal(40, 25)
    chain = Chain(TopK(0.1), last)
    back = roundtrip(chain, x)
    assert (np.abs(back - x) <= chain.error_bound(x)).all()
    assert np.count_nonzero(back) <= 100
    assert chain.size(x.shape) == TopK(0.1).side_size(x.shape) + last.size((100,))


def test_prepared_tensors_are_encoded_and_decoded_as_without_preparation(roundtrip, normal):
    x = normal(30, 8)
    for encoding in (Fp16(), Int8(), TopK(0.1), LowRank(2), Chain(TopK(0.1), Fp16())):
        tensor = prepare(x, encoding)
        again = tensor.encoding.encode(np.empty(0))  # the argument is ignored
        assert (again.side, again.body.tobytes()) == (encoding.encode(x).side, encoding.encode(x).body.tobytes())
        assert np.array_equal(tensor.encoding.decode(x), roundtrip(encoding, x))
        assert (tensor.encoding.name, tensor.encoding.lossy) == (encoding.name, encoding.lossy)


# ---- chains --------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", [Raw(), Fp16(), Bf16(), Int8(), Int4(), Int4(grid="uniform16"), Int2(), LowRank(2)])
def test_a_chain_applies_its_stages_in_order(last, roundtrip, padded):
    lengths = [12, 3, 20, 1]
    x = padded(lengths, 16)
    chain, rows = Chain(Ragged(lengths), last), Ragged(lengths).encode(x).body
    assert chain.name == f"ragged|{last.name}"
    assert chain.lossy == last.lossy
    assert chain.size(x.shape) == Ragged(lengths).side_bytes + last.size(rows.shape)
    back = roundtrip(chain, x)
    assert np.array_equal(Ragged(lengths).encode(back).body, roundtrip(last, rows))
    assert (np.abs(back - x) <= chain.error_bound(x)).all()
    assert not back[1, 3:].any()


def test_three_stages_compose(roundtrip, padded):
    x = padded([30, 40], 24)
    chain = Chain(Ragged([30, 40]), Chain(LowRank(4), Int8()))
    assert chain.name == "ragged|lowrank|int8"
    assert chain.size(x.shape) == Ragged([30, 40]).side_bytes + 2 + (2 + 2 * 4) + (70 + 24) * 4
    assert (np.abs(roundtrip(chain, x) - x) <= chain.error_bound(x) * (1 + 1e-6)).all()


def test_parse_accepts_the_names_of_the_tensor_table():
    for name in ("raw", "fp16", "bf16", "int8", "int4", "int2"):
        assert parse(name).name == name
    assert parse("ragged|int4", lengths=[1, 2]).name == "ragged|int4"
    assert parse("ragged | lowrank:4 | int8", lengths=[1]).stages[1].rank == 4
    assert parse("bits:3").width == 3
    assert parse("topk:0.01 | fp16").stages[0].fraction == 0.01
