"""Quantizers: exact sizes of codes and scales, errors within the bound, stochastic rounding, sentence scales."""

import math

import numpy as np
import pytest

from farshore.wire.encodings import Bits, Chain, Int2, Int4, Int8, Ragged, Raw
from farshore.wire.encodings.scales import FACTORS

# ---- sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("encoding", "bits"), [(Int8(), 8), (Int4(), 4), (Int2(), 2)])
@pytest.mark.parametrize("rank", [2, 3, 4, 8, 32])
def test_codes_take_their_bits_and_scales_two_bytes_per_channel(encoding, bits, rank, normal):
    encoded = encoding.encode(normal(424, rank))
    assert encoded.body.nbytes == 424 * rank * bits // 8
    assert len(encoded.side) == 2 * rank + 2


def test_reference_shape_is_96_times_smaller_and_384_and_768_quantized(normal):
    tokens, width, rank = 32 * 66, 768, 8
    assert Raw().size((tokens, width)) == 6_488_064
    assert Raw().size((tokens, rank)) == 67_584
    assert Raw().size((tokens, width)) / Raw().size((tokens, rank)) == 96.0
    assert Int8().encode(normal(tokens, rank)).body.nbytes == 16_896
    assert Int4().encode(normal(tokens, rank)).body.nbytes == 8_448


def test_768x_codes_reduce_500x_including_side_data_in_both_directions():
    lengths = np.random.default_rng(0).integers(3, 34, 32)
    shape = (32, int(lengths.max()), 4)
    dense = int(lengths.sum()) * 768 // 2 * 4
    up = Chain(Ragged(lengths), Int4(grid="uniform16", scales=0.3)).size(shape) + Bits(1).size((32,))
    down = Chain(Ragged(lengths), Int4(groups=lengths)).size(shape)
    assert dense / (up + down) * 2 > 500


def test_odd_numbers_of_codes_are_padded_to_a_byte(roundtrip, normal):
    assert Int4().encode(normal(3, 3)).body.nbytes == 5
    assert Int2().encode(normal(3, 3)).body.nbytes == 3
    assert np.abs(roundtrip(Int4(), normal(3, 3)) - normal(3, 3)).max() < 0.5


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("encoding", "levels"), [(Int8(), 127), (Int4(), 7)])
def test_error_of_nearest_rounding_is_at_most_half_a_step_of_the_channel(encoding, levels, roundtrip, normal):
    x = normal(500, 16) * np.logspace(-4, 4, 16, dtype=np.float32)
    error = np.abs(roundtrip(encoding, x) - x)
    most = np.abs(x).max(axis=0) / levels / 2
    assert (error <= most * (1 + 2**-9)).all()
    assert (error <= encoding.error_bound(x)).all()
    assert (encoding.error_bound(x) <= most * (1 + 2**-9) + np.abs(x) * 2**-20).all()


def test_a_channel_much_smaller_than_the_largest_stays_within_its_bound(roundtrip, normal):
    x = normal(500, 2) * np.array([1e-11, 1e3], np.float32)
    error = np.abs(roundtrip(Int8(), x) - x)
    assert (error <= Int8().error_bound(x)).all()


def test_uniform16_uses_sixteen_levels_that_span_the_range(roundtrip):
    x = np.linspace(-1, 1, 4001, dtype=np.float32)[:, None]
    back = roundtrip(Int4(grid="uniform16"), x)
    assert np.allclose(np.unique(back), (np.arange(16) - 7.5) / 7.5, atol=1e-3)
    assert np.abs(back - x).max() <= 1 / 15 * 1.001


def test_a_given_step_is_the_distance_of_levels_and_larger_values_are_clipped(roundtrip):
    sigma = np.float32(2.0)
    encoding = Int4(grid="uniform16", scales=[0.335 * sigma])
    x = np.array([[-100.0], [-0.1], [0.1], [1.0], [100.0]], np.float32)
    back = roundtrip(encoding, x) / (0.335 * sigma)
    assert np.allclose(back[:, 0], [-7.5, -0.5, 0.5, 1.5, 7.5], rtol=1e-3)
    assert (np.abs(roundtrip(encoding, x) - x) <= encoding.error_bound(x)).all()


def test_given_scales_are_the_maxima_of_a_mid_tread_grid(roundtrip):
    back = roundtrip(Int8(scales=[4.0, 1.0]), np.array([[1.0, 1.0], [2.0, 9.0]], np.float32))
    assert np.allclose(back, [[round(127 / 4) * 4 / 127, 1.0], [round(127 / 2) * 4 / 127, 1.0]], rtol=1e-3)


def test_with_given_scales_a_row_is_encoded_the_same_alone_and_in_a_batch(roundtrip, normal):
    x = normal(40, 8)
    encoding = Int4(grid="uniform16", scales=np.full(8, 0.335))
    assert np.array_equal(roundtrip(encoding, x)[7:8], roundtrip(encoding, x[7:8]))


@pytest.mark.parametrize("options", [{}, {"grid": "uniform16"}, {"groups": [7]}, {"grid": "uniform16", "groups": [7]}])
def test_stochastic_rounding_is_unbiased_over_ten_thousand_samples(options, roundtrip):
    x = np.array([[0.9, -0.31], [0.07, 0.6], [-0.5, 0.0], [0.333, 1.0], [1.0, -0.77], [-0.01, 0.2], [0.12, 0.4]])
    x = x.astype(np.float32)
    draws = 10_000
    rng = np.random.default_rng(5)
    tall = np.broadcast_to(x, (draws, *x.shape))
    if "groups" in options:
        options = {**options, "groups": [7] * draws}
    encoding = Int4(rounding="stochastic", seed=rng, **options)
    back = roundtrip(encoding, np.ascontiguousarray(tall.reshape(-1, 2))).reshape(tall.shape)
    step = np.array([np.diff(np.unique(back[..., c])).min() for c in (0, 1)])
    assert (np.abs(back - x) <= step * 1.001).all()
    # Five standard errors of a value that is rounded to one of two levels one step apart.
    assert (np.abs(back.mean(axis=0) - x) <= 5 * step / 2 / math.sqrt(draws)).all()


def test_nearest_rounding_is_biased_so_that_the_test_of_stochastic_rounding_can_fail(roundtrip):
    x = np.full((10_000, 1), 0.05, np.float32)
    x[0] = 1.0
    assert abs(roundtrip(Int4(), x)[1:].mean() - 0.05) > 0.04


def test_stochastic_rounding_is_reproducible_with_a_seed(roundtrip, normal):
    x = normal(50, 4)
    same = [roundtrip(Int4(rounding="stochastic", seed=s), x) for s in (3, 3, 4)]
    assert np.array_equal(same[0], same[1])
    assert not np.array_equal(same[0], same[2])


def test_sentence_scales_adapt_to_each_sentence(roundtrip, normal):
    lengths = [5, 0, 9, 1]
    x = normal(15, 6)
    x[:5] *= 1e-4
    x[14:] = 0
    encoding = Int4(grid="uniform16", groups=lengths)
    error = np.abs(roundtrip(encoding, x) - x)
    assert (error <= encoding.error_bound(x)).all()
    # A sentence ten thousand times smaller has its own resolution.
    assert error[:5].max() < 1e-4
    assert not roundtrip(encoding, x)[14:].any()
    rms = np.sqrt((x.astype(np.float64) ** 2).mean(axis=0))
    most = np.abs(x[5:14] / rms).max() * rms / 7.5 / 2 * 2 ** (1 / 16) * (1 + 2**-9)
    assert (error[5:14] <= most).all()


def test_sentence_scales_are_powers_of_the_sixteenth_root_of_two():
    assert FACTORS[0] == 0
    assert FACTORS[255] == 1
    assert np.allclose(FACTORS[17:] / FACTORS[1:-16], 2)


def test_lengths_sent_by_ragged_are_not_sent_again_for_the_scales(roundtrip, padded):
    lengths = np.array([4, 2, 7])
    x = padded(lengths, 3)
    inside, alone = Chain(Ragged(lengths), Int4(groups=lengths)), Int4(groups=lengths)
    rows = Ragged(lengths).encode(x).body
    assert inside.size(x.shape) == Ragged(lengths).side_bytes + (2 + 2 * 3) + 3 + 13 * 3 // 2 + 1
    assert alone.size(rows.shape) == inside.size(x.shape) + 4  # the number of sentences
    assert np.array_equal(Ragged(lengths).encode(roundtrip(inside, x)).body, roundtrip(alone, rows))


def test_groups_that_differ_from_the_ragged_lengths_are_sent(roundtrip, padded):
    x = padded([4, 2, 7], 3)
    encoding = Chain(Ragged([4, 2, 7]), Int4(groups=[6, 7]))
    assert (np.abs(roundtrip(encoding, x) - x) <= encoding.error_bound(x)).all()


@pytest.mark.parametrize("encoding", [Int8(), Int4(), Int4(grid="uniform16"), Int2()])
def test_channels_of_zeros_are_decoded_to_zeros(encoding, roundtrip, normal):
    x = normal(20, 3)
    x[:, 1] = 0
    assert not roundtrip(encoding, x)[:, 1].any()
    assert not roundtrip(encoding, np.zeros((4, 2), np.float32)).any()


@pytest.mark.parametrize("factor", [1e-44, 1e-38, 1e-30, 1e-7, 1e5, 1e30, 3e37])
@pytest.mark.parametrize("encoding", [Int8(), Int4(), Int4(grid="uniform16"), Int4(groups=[30])])
def test_all_magnitudes_of_float32_stay_within_the_bound(encoding, factor, roundtrip, normal):
    x = (normal(30, 4).clip(-4, 4) * np.float64(factor)).astype(np.float32)
    back = roundtrip(encoding, x)
    assert np.isfinite(back).all()
    assert (np.abs(back.astype(np.float64) - x) <= encoding.error_bound(x)).all()
    if factor > 1e-35:
        assert np.abs(back).max() > np.abs(x).max() / 2
