"""What each encoding promises: exact sizes, errors within the bound, refusal of what it cannot write."""

import math

import numpy as np
import pytest

from farshore.core.errors import ConfigError, WireError
from farshore.wire.encodings import (
    Bf16,
    Bits,
    Chain,
    EncodeError,
    Fp16,
    Int2,
    Int4,
    Int8,
    Layout,
    LowRank,
    Ragged,
    Raw,
    TopK,
    decode,
    parse,
    prepare,
)
from farshore.wire.encodings.scales import FACTORS


def through(encoding, array):
    """Encode, check the size promised, decode."""
    encoded = encoding.encode(array)
    body = np.ascontiguousarray(encoded.body).reshape(-1).view(np.uint8).data
    assert len(encoded.side) + len(body) == encoding.size(array.shape, array.dtype)
    return decode(encoding.name, memoryview(encoded.side), body, Layout(array.dtype, array.shape))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def padded(lengths, *rest, longest=None):
    """An array [B, T, …] whose padding is zero."""
    out = np.zeros((len(lengths), longest or max(lengths), *rest), np.float32)
    for b, n in enumerate(lengths):
        out[b, :n] = normal(n, *rest, seed=b)
    return out


# ---- sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("encoding", "bits"), [(Int8(), 8), (Int4(), 4), (Int2(), 2)])
@pytest.mark.parametrize("rank", [2, 3, 4, 8, 32])
def test_codes_take_their_bits_and_scales_two_bytes_a_channel(encoding, bits, rank):
    encoded = encoding.encode(normal(424, rank))
    assert encoded.body.nbytes == 424 * rank * bits // 8
    assert len(encoded.side) == 2 * rank + 2


def test_reference_shape_is_96_times_smaller_and_384_and_768_quantised():
    tokens, width, rank = 32 * 66, 768, 8
    assert Raw().size((tokens, width)) == 6_488_064
    assert Raw().size((tokens, rank)) == 67_584
    assert Raw().size((tokens, width)) / Raw().size((tokens, rank)) == 96.0
    assert Int8().encode(normal(tokens, rank)).body.nbytes == 16_896
    assert Int4().encode(normal(tokens, rank)).body.nbytes == 8_448


def test_768x_codes_stay_above_500x_with_all_side_data_both_ways():
    lengths = np.random.default_rng(0).integers(3, 34, 32)
    shape = (32, int(lengths.max()), 4)
    dense = int(lengths.sum()) * 768 // 2 * 4
    up = Chain(Ragged(lengths), Int4(grid="uniform16", scales=0.3)).size(shape) + Bits(1).size((32,))
    down = Chain(Ragged(lengths), Int4(groups=lengths)).size(shape)
    assert dense / (up + down) * 2 > 500


def test_odd_numbers_of_codes_round_up_to_a_byte():
    assert Int4().encode(normal(3, 3)).body.nbytes == 5
    assert Int2().encode(normal(3, 3)).body.nbytes == 3
    assert np.abs(through(Int4(), normal(3, 3)) - normal(3, 3)).max() < 0.5


# ---- quantisers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("encoding", "levels"), [(Int8(), 127), (Int4(), 7)])
def test_nearest_error_is_at_most_half_a_step_of_the_channels_max(encoding, levels):
    x = normal(500, 16) * np.logspace(-4, 4, 16, dtype=np.float32)
    error = np.abs(through(encoding, x) - x)
    most = np.abs(x).max(axis=0) / levels / 2
    assert (error <= most * (1 + 2**-9)).all()
    assert (error <= encoding.error_bound(x)).all()
    assert (encoding.error_bound(x) <= most * (1 + 2**-9) + np.abs(x) * 2**-20).all()


def test_a_channel_far_below_the_largest_loses_resolution_but_not_its_bound():
    x = normal(500, 2) * np.array([1e-11, 1e3], np.float32)
    error = np.abs(through(Int8(), x) - x)
    assert (error <= Int8().error_bound(x)).all()


def test_uniform16_uses_sixteen_levels_that_span_the_range():
    x = np.linspace(-1, 1, 4001, dtype=np.float32)[:, None]
    back = through(Int4(grid="uniform16"), x)
    assert np.allclose(np.unique(back), (np.arange(16) - 7.5) / 7.5, atol=1e-3)
    assert np.abs(back - x).max() <= 1 / 15 * 1.001


def test_given_step_is_the_distance_of_levels_and_clips_beyond():
    sigma = np.float32(2.0)
    encoding = Int4(grid="uniform16", scales=[0.335 * sigma])
    x = np.array([[-100.0], [-0.1], [0.1], [1.0], [100.0]], np.float32)
    back = through(encoding, x) / (0.335 * sigma)
    assert np.allclose(back[:, 0], [-7.5, -0.5, 0.5, 1.5, 7.5], rtol=1e-3)
    assert (np.abs(through(encoding, x) - x) <= encoding.error_bound(x)).all()


def test_given_max_abs_scales_a_symmetric_grid():
    back = through(Int8(scales=[4.0, 1.0]), np.array([[1.0, 1.0], [2.0, 9.0]], np.float32))
    assert np.allclose(back, [[round(127 / 4) * 4 / 127, 1.0], [round(127 / 2) * 4 / 127, 1.0]], rtol=1e-3)


def test_given_scales_make_one_row_the_same_alone_and_in_a_batch():
    x = normal(40, 8)
    encoding = Int4(grid="uniform16", scales=np.full(8, 0.335))
    assert np.array_equal(through(encoding, x)[7:8], through(encoding, x[7:8]))


@pytest.mark.parametrize("options", [{}, {"grid": "uniform16"}, {"groups": [7]}, {"grid": "uniform16", "groups": [7]}])
def test_stochastic_rounding_is_unbiased_over_ten_thousand_draws(options):
    x = np.array([[0.9, -0.31], [0.07, 0.6], [-0.5, 0.0], [0.333, 1.0], [1.0, -0.77], [-0.01, 0.2], [0.12, 0.4]])
    x = x.astype(np.float32)
    draws = 10_000
    rng = np.random.default_rng(5)
    tall = np.broadcast_to(x, (draws, *x.shape))
    if "groups" in options:
        options = {**options, "groups": [7] * draws}
    encoding = Int4(rounding="stochastic", seed=rng, **options)
    back = through(encoding, np.ascontiguousarray(tall.reshape(-1, 2))).reshape(tall.shape)
    step = np.array([np.diff(np.unique(back[..., c])).min() for c in (0, 1)])
    assert (np.abs(back - x) <= step * 1.001).all()
    # Five standard errors of a value that falls on either of two levels one step apart.
    assert (np.abs(back.mean(axis=0) - x) <= 5 * step / 2 / math.sqrt(draws)).all()


def test_nearest_rounding_of_the_same_values_is_biased_so_the_test_above_can_fail():
    x = np.full((10_000, 1), 0.05, np.float32)
    x[0] = 1.0
    assert abs(through(Int4(), x)[1:].mean() - 0.05) > 0.04


def test_stochastic_rounding_repeats_with_a_seed_and_differs_with_another():
    x = normal(50, 4)
    same = [through(Int4(rounding="stochastic", seed=s), x) for s in (3, 3, 4)]
    assert np.array_equal(same[0], same[1])
    assert not np.array_equal(same[0], same[2])


def test_sentence_scales_adapt_to_each_sentence():
    lengths = [5, 0, 9, 1]
    x = normal(15, 6)
    x[:5] *= 1e-4
    x[14:] = 0
    encoding = Int4(grid="uniform16", groups=lengths)
    error = np.abs(through(encoding, x) - x)
    assert (error <= encoding.error_bound(x)).all()
    # A sentence ten thousand times smaller keeps its own resolution.
    assert error[:5].max() < 1e-4
    assert not through(encoding, x)[14:].any()
    rms = np.sqrt((x.astype(np.float64) ** 2).mean(axis=0))
    most = np.abs(x[5:14] / rms).max() * rms / 7.5 / 2 * 2 ** (1 / 16) * (1 + 2**-9)
    assert (error[5:14] <= most).all()


def test_sentence_scale_bytes_are_sixteenths_of_an_octave():
    assert FACTORS[0] == 0
    assert FACTORS[255] == 1
    assert np.allclose(FACTORS[17:] / FACTORS[1:-16], 2)


def test_lengths_that_ragged_sends_are_not_sent_again_for_the_scales():
    lengths = np.array([4, 2, 7])
    x = padded(lengths, 3)
    inside, alone = Chain(Ragged(lengths), Int4(groups=lengths)), Int4(groups=lengths)
    rows = Ragged(lengths).encode(x).body
    assert inside.size(x.shape) == Ragged(lengths).side_bytes + (2 + 2 * 3) + 3 + 13 * 3 // 2 + 1
    assert alone.size(rows.shape) == inside.size(x.shape) + 4  # and the number of sentences
    assert np.array_equal(Ragged(lengths).encode(through(inside, x)).body, through(alone, rows))


def test_groups_other_than_the_ragged_lengths_travel_by_themselves():
    x = padded([4, 2, 7], 3)
    encoding = Chain(Ragged([4, 2, 7]), Int4(groups=[6, 7]))
    assert (np.abs(through(encoding, x) - x) <= encoding.error_bound(x)).all()


@pytest.mark.parametrize("encoding", [Int8(), Int4(), Int4(grid="uniform16"), Int2()])
def test_channels_of_zeros_stay_zero(encoding):
    x = normal(20, 3)
    x[:, 1] = 0
    assert not through(encoding, x)[:, 1].any()
    assert not through(encoding, np.zeros((4, 2), np.float32)).any()


@pytest.mark.parametrize("factor", [1e-44, 1e-38, 1e-30, 1e-7, 1e5, 1e30, 3e37])
@pytest.mark.parametrize("encoding", [Int8(), Int4(), Int4(grid="uniform16"), Int4(groups=[30])])
def test_any_magnitude_of_float32_keeps_its_bound_whatever_half_precision_reaches(encoding, factor):
    x = (normal(30, 4).clip(-4, 4) * np.float64(factor)).astype(np.float32)
    back = through(encoding, x)
    assert np.isfinite(back).all()
    assert (np.abs(back.astype(np.float64) - x) <= encoding.error_bound(x)).all()
    if factor > 1e-35:
        assert np.abs(back).max() > np.abs(x).max() / 2


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("encoding", [Int8(), Int4(scales=[1, 1]), Int4(groups=[3]), Int2(), LowRank(1), TopK(0.5)])
def test_non_finite_values_are_refused(encoding, bad):
    x = np.ones((3, 2), np.float32) if encoding.name != "lowrank" else np.ones((30, 20), np.float32)
    x[1, 1] = bad
    with pytest.raises(EncodeError, match="not finite"):
        encoding.encode(x)


def test_values_or_scales_beyond_float32_are_refused():
    with pytest.raises(EncodeError, match="not finite in float32"):
        Int8().encode(np.full((2, 2), 1e300))
    with pytest.raises(EncodeError, match="too large"):
        Int4(grid="uniform16", scales=1e39).encode(normal(2, 2))
    with pytest.raises(EncodeError, match="too far"):
        Int4(groups=[2], scales=1e-36).encode(np.full((2, 2), 3e38, np.float32))


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_half_and_double_precision_arrays_come_back_in_their_type(dtype):
    x = normal(9, 5).astype(dtype)
    for encoding in (Int8(), Int4(), Int4(grid="uniform16"), Fp16(), Bf16(), LowRank(2), TopK(0.3)):
        back = through(encoding, x)
        assert back.dtype == dtype
        assert (np.abs(back.astype(np.float64) - x) <= encoding.error_bound(x)).all()
    assert np.isfinite(through(Int4(grid="uniform16"), np.full((2, 2), 65504, np.float16))).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Int4(rounding="stochastic"), "needs a seed"),
        (lambda: Int4(rounding="up"), "rounding is"),
        (lambda: Int4(grid="uniform"), "the grid is"),
        (lambda: Int8(scales=[1.0, np.nan]), "finite"),
        (lambda: Int8(scales=[-1.0]), "non-negative"),
        (lambda: Ragged([[1, 2]]), "flat list"),
        (lambda: Ragged([-1]), "between 0"),
        (lambda: Ragged([1.5]), "flat list"),
        (lambda: LowRank(0), "1 to 65535"),
        (lambda: Bits(0), "1 to 32"),
        (lambda: TopK(0), "above 0"),
        (lambda: TopK(1.5), "at most 1"),
        (lambda: TopK(math.nan), "at most 1"),
        (lambda: Chain(Int4(), Raw()), "ends a chain"),
        (lambda: Chain(Raw()), "two to four"),
    ],
)
def test_wrong_settings_are_refused_when_they_are_made(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    ("encoding", "array", "message"),
    [
        (Int4(), np.zeros((2, 2), np.int64), "floating-point arrays, not int64"),
        (Fp16(), np.zeros(2, np.uint16), "floating-point"),
        (Int4(scales=[1, 2, 3]), np.zeros((2, 2), np.float32), "3 scales for 2 channels"),
        (Int4(groups=[1, 2]), np.zeros((2, 2), np.float32), "3 rows in all for 2 rows"),
        (Ragged([1, 2]), np.zeros((3, 2), np.float32), "does not fit"),
        (Ragged([1, 3]), np.zeros((2, 2), np.float32), "does not fit"),
        (Bits(2), np.array([0, 4]), "writes 0 to 3, the array holds 0 to 4"),
        (Bits(2), np.array([-1, 1]), "holds -1 to 1"),
        (Bits(2), np.array([0.5]), "integers and booleans"),
        (TopK(0.5), np.array([1, 2]), "floating-point arrays, not int64"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(encoding, array, message):
    with pytest.raises(EncodeError, match=message):
        encoding.encode(array)


# ---- half precision ------------------------------------------------------------------------------


def test_fp16_passes_infinities_and_refuses_overflow():
    x = np.array([np.inf, -np.inf, np.nan, 65504.0, 1e-8, -0.0], np.float32)
    back = through(Fp16(), x)
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
        wanted = x.astype(np.float16)
    assert np.array_equal(Fp16().encode(x).body.view(np.uint16), wanted.view(np.uint16))


def test_bf16_rounds_to_nearest_even_and_keeps_nan():
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0xBF818000], np.uint32)
    body = Bf16().encode(bits.view(np.float32)).body
    assert [hex(b) for b in body] == ["0x3f80", "0x3f82", "0x3f81", "0x3f80", "0xbf82"]
    special = np.array([0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0x7F800000, 0xFF800000, 0, 0x80000000], np.uint32)
    back = through(Bf16(), special.view(np.float32))
    assert np.isnan(back[:3]).all()
    assert back[3] == np.inf
    assert back[4] == -np.inf
    assert np.signbit(back[5:]).tolist() == [False, True]
    with pytest.raises(EncodeError, match="infinity"):
        Bf16().encode(np.array([3.4e38], np.float32))


# ---- ragged, bits, low rank ----------------------------------------------------------------------


@pytest.mark.parametrize("longest", [9, 40_000, 70_000])
def test_ragged_sends_no_padding_and_restores_zeros_there(longest):
    lengths = [3, 0, 9, 1, 9]
    x = padded(lengths, 2, longest=longest)
    encoded = Ragged(lengths).encode(x)
    assert encoded.body.shape == (22, 2)
    assert len(encoded.side) == 1 + math.ceil(5 * 4 / 8)  # the longest, 9, needs four bits
    assert np.array_equal(through(Ragged(lengths), x), x)


def test_ragged_does_not_send_what_stands_in_the_padding():
    x = np.ones((2, 3), np.int64)
    assert np.array_equal(through(Ragged([1, 3]), x), [[1, 0, 0], [1, 1, 1]])


@pytest.mark.parametrize("width", [1, 2, 3, 7, 8, 13, 16, 31, 32])
@pytest.mark.parametrize("count", [0, 1, 9, 70_001])
def test_bits_are_lossless_at_every_width(width, count):
    x = np.random.default_rng(width).integers(0, 2**width, count, dtype=np.int64)
    encoded = Bits(width).encode(x)
    assert encoded.body.nbytes == math.ceil(count * width / 8)
    assert np.array_equal(through(Bits(width), x), x)


def test_bits_take_masks():
    mask = np.random.default_rng(0).random((5, 7)) > 0.5
    assert np.array_equal(through(Bits(1), mask), mask)


@pytest.mark.parametrize("shape", [(120, 60), (60, 120), (10, 12, 60)])
def test_lowrank_comes_within_five_percent_of_the_svd_on_decaying_spectra(shape):
    rng = np.random.default_rng(1)
    m, n = math.prod(shape[:-1]), shape[-1]
    u, v = (np.linalg.qr(rng.standard_normal((k, min(m, n))))[0] for k in (m, n))
    for decay in (0.5, 1.0, 2.0):
        sigma = np.arange(1, min(m, n) + 1) ** -decay
        x = (u * sigma @ v.T).reshape(shape).astype(np.float32)
        best = math.sqrt((sigma[8:] ** 2).sum())
        encoding = LowRank(8)
        residual = np.linalg.norm(through(encoding, x) - x)
        assert best * 0.999 <= residual <= best * 1.05
        assert np.isclose(encoding.error_bound(x).item(), residual, rtol=1e-3)


def test_lowrank_of_a_matrix_of_that_rank_is_exact_up_to_rounding():
    x = normal(50, 3) @ normal(3, 40, seed=1)
    assert np.abs(through(LowRank(3), x) - x).max() < 1e-5 * np.abs(x).max()
    assert LowRank(3).size((50, 40)) == 2 + 3 * 90 * 4


def test_lowrank_sends_as_is_what_it_would_not_shrink():
    for x in (normal(10, 4), normal(7), np.zeros((0, 4), np.float32), normal(4, 1)):
        assert np.array_equal(through(LowRank(3), x), x)


def test_lowrank_of_tiny_and_huge_values_is_finite():
    for factor in (1e-36, 1e37):
        x = (normal(40, 2) @ normal(2, 30, seed=1)).clip(-8, 8) * np.float32(factor)
        assert np.linalg.norm((through(LowRank(6), x) - x) / factor) < 0.6 * np.linalg.norm(x / factor)


# ---- top-k ---------------------------------------------------------------------------------------


def test_topk_sends_the_largest_magnitudes_and_zeros_for_the_rest():
    x = np.array([[0.5, -3.0, 0.1], [2.0, -0.2, 0.0]], np.float32)
    assert np.array_equal(through(TopK(0.3), x), [[0, -3, 0], [2, 0, 0]])
    assert np.array_equal(through(TopK(1.0), x), x)
    assert np.array_equal(through(TopK(1e-9), x), [[0, -3, 0], [0, 0, 0]])  # never none of some


def test_topk_of_equal_magnitudes_sends_the_first():
    x = np.array([1, -1, 1, 2, -1, 1], np.float32)
    assert np.array_equal(through(TopK(0.5), x), [1, -1, 0, 2, 0, 0])


@pytest.mark.parametrize(
    ("n", "fraction", "side"),
    [(24_618, 0.01, 4 + math.ceil(247 * 15 / 8)), (1000, 0.5, 4 + 125), (1, 1, 4 + 1), (2**16, 2**-16, 4 + 2)],
)
def test_topk_places_take_the_bits_of_the_last_place_or_a_mask(n, fraction, side):
    x = normal(n)
    encoded = TopK(fraction).encode(x)
    assert len(encoded.side) == side
    assert encoded.body.size == math.ceil(n * fraction)
    back = through(TopK(fraction), x)
    sent = back != 0
    assert sent.sum() == encoded.body.size
    assert np.array_equal(back[sent], x[sent])
    assert np.abs(x[~sent]).max(initial=0) <= np.abs(x[sent]).min()


@pytest.mark.parametrize("last", [Fp16(), Bf16(), Int8(), Int4()])
def test_topk_values_may_be_encoded_again(last):
    x = normal(40, 25)
    chain = Chain(TopK(0.1), last)
    back = through(chain, x)
    assert (np.abs(back - x) <= chain.error_bound(x)).all()
    assert np.count_nonzero(back) <= 100
    assert chain.size(x.shape) == TopK(0.1).side_size(x.shape) + last.size((100,))


def test_what_was_prepared_arrives_as_it_would_have():
    x = normal(30, 8)
    for encoding in (Fp16(), Int8(), TopK(0.1), LowRank(2), Chain(TopK(0.1), Fp16())):
        tensor = prepare(x, encoding)
        again = tensor.encoding.encode(np.empty(0))  # whatever it is given
        assert (again.side, again.body.tobytes()) == (encoding.encode(x).side, encoding.encode(x).body.tobytes())
        assert np.array_equal(tensor.encoding.decode(x), through(encoding, x))
        assert (tensor.encoding.name, tensor.encoding.lossy) == (encoding.name, encoding.lossy)


# ---- chains --------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", [Raw(), Fp16(), Bf16(), Int8(), Int4(), Int4(grid="uniform16"), Int2(), LowRank(2)])
def test_a_chain_is_its_stages_one_after_the_other(last):
    lengths = [12, 3, 20, 1]
    x = padded(lengths, 16)
    chain, rows = Chain(Ragged(lengths), last), Ragged(lengths).encode(x).body
    assert chain.name == f"ragged|{last.name}"
    assert chain.lossy == last.lossy
    assert chain.size(x.shape) == Ragged(lengths).side_bytes + last.size(rows.shape)
    back = through(chain, x)
    assert np.array_equal(Ragged(lengths).encode(back).body, through(last, rows))
    assert (np.abs(back - x) <= chain.error_bound(x)).all()
    assert not back[1, 3:].any()


def test_three_stages_compose():
    x = padded([30, 40], 24)
    chain = Chain(Ragged([30, 40]), Chain(LowRank(4), Int8()))
    assert chain.name == "ragged|lowrank|int8"
    assert chain.size(x.shape) == Ragged([30, 40]).side_bytes + 2 + (2 + 2 * 4) + (70 + 24) * 4
    assert (np.abs(through(chain, x) - x) <= chain.error_bound(x) * (1 + 1e-6)).all()


def test_parse_reads_names_as_they_stand_in_the_tensor_table():
    for spec in ("raw", "fp16", "bf16", "int8", "int4", "int2"):
        assert parse(spec).name == spec
    assert parse("ragged|int4", lengths=[1, 2]).name == "ragged|int4"
    assert parse("ragged | lowrank:4 | int8", lengths=[1]).stages[1].rank == 4
    assert parse("bits:3").width == 3
    assert parse("topk:0.01 | fp16").stages[0].fraction == 0.01


@pytest.mark.parametrize("spec", ["", "int5", "ragged", "bits", "lowrank:x", "int4:2", "int4|ragged", "topk", "topk:2"])
def test_parse_refuses_what_it_cannot_make(spec):
    with pytest.raises(ConfigError):
        parse(spec, lengths=[1] if "|" in spec else None)


@pytest.mark.parametrize(
    ("name", "side", "body", "layout", "message"),
    [
        ("zip", b"", b"", Layout(np.dtype("f4"), ()), "'zip' is unknown"),
        ("int4|raw", b"", b"", Layout(np.dtype("f4"), ()), "cannot stand before"),
        ("ragged|" * 4 + "raw", b"", b"", Layout(np.dtype("f4"), ()), "more than 4 stages"),
        ("raw", b"x", b"", Layout(np.dtype("f4"), (0,)), "side data of 'raw' has 1 bytes where 0"),
        ("raw", b"", bytes(5), Layout(np.dtype("f4"), (1,)), "5 bytes where 4"),
        ("raw", b"", b"\2", Layout(np.dtype("?"), (1,)), "neither 0 nor 1"),
        ("fp16", b"", bytes(2), Layout(np.dtype("i4"), (1,)), "not int32"),
        ("int4", b"\0", b"", Layout(np.dtype("f4"), (2, 2)), "2 scales need 6"),
        ("int4", b"\x80\0" + bytes(4), bytes(2), Layout(np.dtype("f4"), (2, 2)), "unknown flags"),
        ("int4", b"\2\0" + bytes(4), bytes(2), Layout(np.dtype("f4"), (2, 2)), "unknown flags"),
        ("int4", bytes(6), bytes(3), Layout(np.dtype("f4"), (2, 2)), "3 bytes where 2"),
        ("int4", bytes(7), bytes(2), Layout(np.dtype("f4"), (2, 2)), "7 bytes where 6"),
        ("int8", b"\0\0\0\x7c", bytes(2), Layout(np.dtype("f4"), (2, 1)), "infinite"),
        ("int8", b"\0\0\0\x80", bytes(2), Layout(np.dtype("f4"), (2, 1)), "negative"),
        ("int8", b"\0\x7f\xff\x7b", bytes(2), Layout(np.dtype("f4"), (2, 1)), "infinite"),
        (
            "int8",
            b"\1\0\0\0" + b"\xff" * 4,
            bytes(2),
            Layout(np.dtype("f4"), (2, 1)),
            "4294967295 sentence scales",
        ),
        ("int8", b"\3\0\0\0", bytes(2), Layout(np.dtype("f4"), (2, 1)), "no outer encoding"),
        ("int8", b"\1\0\0\0\1\0\0\0\x08\x05\xff", bytes(2), Layout(np.dtype("f4"), (2, 1)), "add up to 5"),
        ("ragged", b"\x08\x03", b"", Layout(np.dtype("f4"), (1, 2)), "length of 3"),
        ("ragged", b"\0", b"", Layout(np.dtype("f4"), (1, 2)), "0 bits"),
        ("ragged", b"\x08", b"", Layout(np.dtype("f4"), (1, 2)), "within the lengths"),
        ("ragged", b"", b"", Layout(np.dtype("f4"), (1, 2)), "before the lengths"),
        ("ragged", b"\1", b"", Layout(np.dtype("f4"), (2,)), "two axes"),
        ("ragged", b"\1", b"", Layout(np.dtype("u1"), (1 << 21, 1)), "more than"),
        ("lowrank", b"\1", b"", Layout(np.dtype("f4"), (9, 9)), "before the rank"),
        ("lowrank", b"\x09\0", b"", Layout(np.dtype("f4"), (9, 9)), "not be smaller"),
        ("topk", b"\0", b"", Layout(np.dtype("f4"), (9,)), "before the number"),
        ("topk", bytes(4), b"", Layout(np.dtype("i4"), (9,)), "not int32"),
        ("topk", b"\x0a\0\0\0", b"", Layout(np.dtype("f4"), (9,)), "cannot send 10 of 9"),
        ("topk", b"\2\0\0\0", bytes(8), Layout(np.dtype("f4"), (9,)), "within the places of 2"),
        ("topk", b"\2\0\0\0\x33", bytes(8), Layout(np.dtype("f4"), (9,)), "do not ascend"),
        ("topk", b"\2\0\0\0\x93", bytes(8), Layout(np.dtype("f4"), (9,)), "do not ascend within 9"),
        ("topk", b"\3\0\0\0\3\0", bytes(12), Layout(np.dtype("f4"), (9,)), "marks 2 elements where it sends 3"),
        ("topk", b"\2\0\0\0\x31\0", bytes(8), Layout(np.dtype("f4"), (9,)), "side data of 'raw'"),
        ("topk", b"\2\0\0\0\x31", bytes(4), Layout(np.dtype("f4"), (9,)), "4 bytes where 8"),
        ("bits", b"\0", b"", Layout(np.dtype("i4"), (9,)), "does not fit int32"),
        ("bits", b"\x09", bytes(9), Layout(np.dtype("i1"), (8,)), "does not fit int8"),
        ("bits", b"\1", bytes(1), Layout(np.dtype("f4"), (8,)), "integers and booleans"),
    ],
)
def test_bytes_that_no_encoder_writes_are_refused(name, side, body, layout, message):
    with pytest.raises(WireError, match=message):
        decode(name, memoryview(side), memoryview(body), layout)
