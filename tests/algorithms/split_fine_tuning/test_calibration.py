"""Calibration: directions follow the data, and only the initial values leave the edge."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from farshore.algorithms.split_fine_tuning.calibration import calibrate, collect_moments, fit_codec
from farshore.algorithms.split_fine_tuning.codec_init import CodecInit
from farshore.algorithms.split_fine_tuning.cut import cut
from farshore.algorithms.split_fine_tuning.wire_codec import codec_init_of, codec_message
from farshore.core.errors import DataError, RefusedError
from farshore.wire.limits import DEFAULT
from farshore.wire.pack import pack, unpack


def through(split: Any, batch: Any) -> torch.Tensor:
    z, sentence = split.front.codes(batch["input_ids"], batch["attention_mask"])
    return split.trunk(z, batch["attention_mask"], sentence)


def samples(count: int = 40, seed: int = 7) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(count):
        ids = torch.randint(3, 99, (4, 8), generator=generator)
        mask = (torch.arange(8) < torch.tensor([8, 5, 3, 7])[:, None]).long()
        batches.append({"input_ids": ids.masked_fill(mask == 0, 1), "attention_mask": mask})
    return batches


def calibrated(model: Any, batches: Any, **options: Any) -> tuple[Any, Any]:
    split = cut(model, **{"block": 2, "how": "ffn_svd", "init": "pca", **options})
    calibration = calibrate(split.front, batches)
    split.trunk.initialize_codec(calibration.init)
    return split, calibration


@pytest.mark.parametrize("decoder", ["linear", "mlp"])
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_a_calibrated_codec_of_full_rank_equals_the_whole_model(tiny, batch, family, decoder):
    model = tiny(family).eval()
    expected = model(batch["input_ids"], batch["attention_mask"])
    split, calibration = calibrated(model, samples(), rank=32, decoder=decoder)
    assert (through(split, batch) - expected).abs().max() < 1e-5 * expected.abs().max()
    assert calibration.kept == pytest.approx(1.0)


def test_a_calibrated_codec_loses_less_than_svd_initialization(tiny, batch):
    """On held-out sentences and at the same rank, the error of PCA with a projected residual is the smallest."""
    held_out = samples(5, seed=99)
    errors = {}
    for name, options in {
        "paper": {"init": "svd", "residual": "drop"},
        "svd": {"init": "svd", "residual": "project"},
        "pca": {"init": "pca", "residual": "project"},
    }.items():
        model = tiny("bert").eval()
        reference = cut(tiny("bert").eval(), block=2, how="boundary").front
        split, _ = calibrated(model, samples(), rank=8, **options)
        lost = []
        for b in held_out:
            keep = b["attention_mask"].bool()
            intact = reference(b["input_ids"], b["attention_mask"])[keep]
            rebuilt = split.trunk._hidden(split.front(b["input_ids"], b["attention_mask"]), None)[keep]
            lost.append(float(((rebuilt - intact).norm() / intact.norm()).detach()))
        errors[name] = sum(lost) / len(lost)
    assert errors["pca"] < 0.95 * errors["svd"]
    assert errors["pca"] < 0.8 * errors["paper"]


def test_padding_does_not_enter_the_moments(tiny):
    front = cut(tiny("bert"), block=2, how="ffn_svd", rank=4, init="pca").front
    batches = samples(3)
    moments = collect_moments(front, batches)
    front.eval()
    kept = torch.cat([front.features(**b)[b["attention_mask"].bool()] for b in batches]).double()
    assert moments.tokens == len(kept) == 3 * 23
    assert torch.allclose(moments.mean, kept.mean(0))
    assert torch.allclose(moments.covariance, torch.cov(kept.T, correction=0), atol=1e-8)


def test_calibration_ignores_dropout_and_restores_the_training_mode(tiny):
    front = cut(tiny("bert", dropout=0.5), block=2, how="ffn_svd", rank=4, init="pca").front.train()
    assert torch.equal(collect_moments(front, samples(2)).total, collect_moments(front, samples(2)).total)
    assert all(m.training for m in front.modules())


@pytest.mark.parametrize(("family", "stream"), [("bert", 0), ("gpt2", 32 * 4 + 32)])
def test_only_directions_and_moments_leave_the_edge(tiny, family, stream):
    _, calibration = calibrated(tiny(family), samples(), rank=4)
    assert sum(t.numel() for t in calibration.init.tensors().values()) == 4 * 32 + 32 + stream + 4 + 4
    assert all(t.dtype == torch.float32 and t.is_contiguous() for t in calibration.init.tensors().values())


def test_w1_stays_in_the_cloud_until_the_codec_is_initialized(tiny):
    split = cut(tiny("bert"), block=2, how="ffn_svd", rank=4, init="pca")
    weight, bias = (t.double() for t in split.trunk.factorized)
    assert not any(t.shape == (64, 32) for n, t in split.front.state_dict().items() if "layer.1." in n)
    init = calibrate(split.front, samples()).init
    split.trunk.initialize_codec(init)
    assert split.trunk.factorized is None
    v, mean = init.directions.double(), init.mean.double()
    assert torch.allclose(split.trunk.codec.expand.weight.double(), weight @ v.T, atol=1e-6)
    assert torch.allclose(split.trunk.codec.expand.bias.double(), bias + weight @ (mean - v.T @ (v @ mean)), atol=1e-6)


def test_both_sides_use_the_initial_values_rounded_to_bf16(tiny):
    split = cut(tiny("bert"), block=2, how="ffn_svd", rank=4, init="pca")
    init = calibrate(split.front, samples(), torch.bfloat16).init
    received = codec_init_of(unpack_of(codec_message(init, "bf16")), split.plan, "edge 'x'")
    for name, tensor in init.tensors().items():
        assert torch.equal(received.tensors()[name], tensor), name
    assert torch.equal(split.front.codec.directions.weight, init.directions)


def unpack_of(message):
    packed = pack(message, DEFAULT)
    return unpack(packed.header, memoryview(b"".join(packed.payload)), DEFAULT)


@pytest.mark.parametrize(
    ("how", "init"),
    [
        ("ffn_svd", "svd"),
        ("ffn_svd", "random"),
        ("ffn_svd", "pca"),
        ("codec", "random"),
        ("codec", "pca"),
        ("boundary", "pca"),
        ("ffn", "pca"),
    ],
)
def test_code_statistics_are_those_of_the_codes(tiny, how, init):
    rank = 4 if how in ("ffn_svd", "codec") else None
    split = cut(tiny("bert").eval(), block=2, how=how, rank=rank, init=init)
    batches = samples(10)
    calibration = calibrate(split.front, batches)
    split.front.eval()
    codes = torch.cat([split.front(**b)[b["attention_mask"].bool()] for b in batches]).detach()
    assert torch.allclose(calibration.init.code_mean, codes.mean(0), rtol=1e-4, atol=1e-4)
    assert torch.allclose(split.front.statistics.deviation, codes.std(0, correction=0), rtol=1e-3, atol=1e-4)


def test_a_pre_norm_stream_is_fitted_by_least_squares(tiny):
    """GPT-2: the reconstructed residual is the least-squares estimate of the stream before the norm."""
    batches = samples(30)
    split, _ = calibrated(tiny("gpt2").eval(), batches, rank=8)
    seen: list[torch.Tensor] = []
    block = split.front.model.h[-1].block
    block.ln_2.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    codes = [split.front(**b)[b["attention_mask"].bool()] for b in batches]
    stream = [h[b["attention_mask"].bool()] for h, b in zip(seen, batches, strict=True)]
    z, h = torch.cat(codes).detach().double(), torch.cat(stream).detach().double()
    design = torch.cat([z, torch.ones(len(z), 1, dtype=torch.float64)], 1)
    best = torch.linalg.lstsq(design, h).solution
    rebuilt = split.trunk.codec.residual(z.float()).double()
    assert torch.allclose(rebuilt, design @ best, atol=1e-3 * float(h.std()))


def test_two_edges_share_one_codec(tiny, batch):
    one = cut(tiny("bert").eval(), block=2, how="ffn_svd", rank=4, init="pca").front.eval()
    two = cut(tiny("bert").eval(), block=2, how="ffn_svd", rank=4, init="pca").front.eval()
    calibration = calibrate(one, samples())
    assert not torch.equal(
        one(batch["input_ids"], batch["attention_mask"]), two(batch["input_ids"], batch["attention_mask"])
    )
    two.initialize_codec(calibration.init)
    assert torch.equal(
        one(batch["input_ids"], batch["attention_mask"]), two(batch["input_ids"], batch["attention_mask"])
    )


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"directions": torch.zeros(5, 32)}, "(5, 32), expected (4, 32)"),
        ({"extra": torch.zeros(3)}, "extra"),
        ({"mean": torch.full((32,), float("nan"))}, "not finite"),
        ({"mean": torch.zeros(32, dtype=torch.int64)}, "int64"),
        ({"mean": None}, "expected code_mean, code_variance, directions, mean"),
    ],
)
def test_an_invalid_codec_from_a_peer_is_refused(tiny, change, word):
    plan = cut(tiny("bert"), block=2, how="ffn_svd", rank=4, init="pca").plan
    right = {
        "code_mean": torch.zeros(4),
        "code_variance": torch.ones(4),
        "directions": torch.zeros(4, 32),
        "mean": torch.zeros(32),
    }
    CodecInit.from_tensors(right, plan)
    tensors = {n: t for n, t in (right | change).items() if t is not None}
    with pytest.raises(RefusedError) as caught:
        CodecInit.from_tensors(tensors, plan)
    assert word in str(caught.value)


def test_values_beyond_fp16_suggest_another_encoding(tiny):
    front = cut(tiny("bert"), block=2, how="ffn_svd", rank=4, init="pca").front
    moments = collect_moments(front, samples())
    moments.total *= 1e6
    with pytest.raises(DataError, match="codec_encoding=bf16"):
        fit_codec(front, moments, torch.float16)


def test_too_few_samples_are_refused(tiny):
    front = cut(tiny("bert"), block=2, how="ffn_svd", rank=32, init="pca").front
    with pytest.raises(DataError, match="23 tokens for a code of width 32"):
        calibrate(front, samples(1))
    with pytest.raises(DataError, match="0 tokens"):
        calibrate(front, [])
