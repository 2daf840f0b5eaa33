"""Calibration: the directions follow the data, and few tensors carry it to the trunk."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from farshore.algorithms.split_fine_tuning.calibration import calibrate, collect, settle
from farshore.algorithms.split_fine_tuning.cut import cut
from farshore.core.errors import ConfigError, DataError, RefusedError


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
    split.trunk.load_codec_state(calibration.trunk)
    return split, calibration


@pytest.mark.parametrize("decoder", ["linear", "mlp"])
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_a_calibrated_code_of_full_rank_equals_the_whole_model(tiny, batch, family, decoder):
    model = tiny(family).eval()
    expected = model(batch["input_ids"], batch["attention_mask"])
    split, calibration = calibrated(model, samples(), rank=32, decoder=decoder)
    assert (through(split, batch) - expected).abs().max() < 1e-5 * expected.abs().max()
    assert calibration.kept == pytest.approx(1.0)


def test_the_calibrated_code_loses_less_than_the_papers(tiny, batch):
    """On held-out sentences, at the same rank: projected residual + PCA < projected + SVD < dropped
    (§3.4)."""
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
    moments = collect(front, batches)
    front.eval()
    kept = torch.cat([front.features(**b)[b["attention_mask"].bool()] for b in batches]).double()
    assert moments.tokens == len(kept) == 3 * 23
    assert torch.allclose(moments.mean, kept.mean(0))
    assert torch.allclose(moments.covariance, torch.cov(kept.T, correction=0), atol=1e-8)


def test_dropout_does_not_disturb_calibration_and_the_mode_comes_back(tiny):
    front = cut(tiny("bert", dropout=0.5), block=2, how="ffn_svd", rank=4, init="pca").front.train()
    assert torch.equal(collect(front, samples(2)).total, collect(front, samples(2)).total)
    assert all(m.training for m in front.modules())


def test_moments_of_two_edges_add_up(tiny):
    front = cut(tiny("bert"), block=2, how="ffn_svd", rank=4, init="pca").front
    batches = samples(6)
    whole, one, two = collect(front, batches), collect(front, batches[:2]), collect(front, batches[2:])
    one.merge(two)
    assert one.tokens == whole.tokens
    assert torch.allclose(one.covariance, whole.covariance, atol=1e-10)


def test_only_the_named_numbers_are_sent(tiny):
    _, calibration = calibrated(tiny("bert"), samples(), rank=4)
    assert sum(t.numel() for t in calibration.trunk.values()) == 64 * 4 + 64 + 32 * 4 + 32
    assert {n: t.dtype for n, t in calibration.trunk.items()} == {
        "expand.weight": torch.float32,
        "expand.bias": torch.float32,
        "residual.weight": torch.float32,
        "residual.bias": torch.float32,
    }
    assert all(t.is_contiguous() for t in (*calibration.trunk.values(), *calibration.front.values()))


def test_the_first_matrix_leaves_the_edge_after_calibration(tiny):
    split = cut(tiny("bert"), block=2, how="ffn_svd", rank=4, init="pca")
    assert split.front.first is not None
    assert not any(p.shape == (64, 32) for n, p in split.front.named_parameters() if "layer.1." in n)
    moments = collect(split.front, samples())
    settle(split.front, moments)
    assert split.front.first is None
    with pytest.raises(ConfigError, match="calibrate once"):
        settle(split.front, moments)


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
    assert torch.allclose(calibration.code_mean, codes.mean(0), rtol=1e-4, atol=1e-4)
    assert torch.allclose(split.front.statistics.deviation, codes.std(0, correction=0), rtol=1e-3, atol=1e-4)


def test_a_pre_norm_stream_is_fitted_by_least_squares(tiny):
    """GPT-2: the residual rebuilt from the code is the best linear guess at the stream before the norm."""
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


def test_two_edges_share_one_code(tiny, batch):
    one = cut(tiny("bert").eval(), block=2, how="ffn_svd", rank=4, init="pca").front.eval()
    two = cut(tiny("bert").eval(), block=2, how="ffn_svd", rank=4, init="pca").front.eval()
    calibration = calibrate(one, samples())
    assert not torch.equal(
        one(batch["input_ids"], batch["attention_mask"]), two(batch["input_ids"], batch["attention_mask"])
    )
    two.load_codec_state(calibration.front)
    assert torch.equal(
        one(batch["input_ids"], batch["attention_mask"]), two(batch["input_ids"], batch["attention_mask"])
    )


@pytest.mark.parametrize(
    ("state", "word"),
    [
        ({"expand.weight": torch.zeros(64, 5)}, "(64, 4), not (64, 5)"),
        ({"extra": torch.zeros(3)}, "no tensor 'extra'"),
        ({"residual.bias": torch.full((32,), float("nan"))}, "not finite"),
        ({"residual.bias": torch.zeros(32, dtype=torch.int64)}, "int64"),
    ],
)
def test_a_wrong_codec_from_a_peer_is_refused_and_changes_nothing(tiny, state, word):
    trunk = cut(tiny("bert"), block=2, how="ffn_svd", rank=4, init="pca").trunk
    before = trunk.codec_state()
    with pytest.raises(RefusedError) as caught:
        trunk.load_codec_state({"expand.bias": torch.ones(64), **state})
    assert word in str(caught.value)
    assert all(torch.equal(before[n], t) for n, t in trunk.codec_state().items())


def test_too_few_samples_are_named(tiny):
    front = cut(tiny("bert"), block=2, how="ffn_svd", rank=32, init="pca").front
    with pytest.raises(DataError, match="23 tokens for a code of width 32"):
        calibrate(front, samples(1))
    with pytest.raises(DataError, match="0 tokens"):
        calibrate(front, [])
