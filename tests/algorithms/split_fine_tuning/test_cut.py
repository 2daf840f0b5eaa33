"""A cut does not change the model's function, parameters or random numbers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from farshore.algorithms.split_fine_tuning.cut import cut
from farshore.core.errors import ConfigError
from farshore.engines.split.architectures import find_blocks

FAMILIES = ["bert", "roberta", "distilbert", "gpt2"]


def whole(model: Any, batch: Any) -> torch.Tensor:
    return model(batch["input_ids"], batch["attention_mask"])


def through(split: Any, batch: Any) -> torch.Tensor:
    z, sentence = split.front.codes(batch["input_ids"], batch["attention_mask"])
    return split.trunk(z, batch["attention_mask"], sentence)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_boundary_split_equals_the_whole_model_bit_for_bit(tiny, batch, family, k, attention):
    model = tiny(family, attention=attention).eval()
    expected = whole(model, batch)
    split = cut(model, block=k, how="boundary")
    assert torch.equal(through(split, batch), expected)
    assert split.plan.width == 32


@pytest.mark.parametrize("family", FAMILIES)
def test_a_padding_mask_reaches_both_halves(tiny, batch, family):
    """Without its mask, either half would attend to padding and return other values."""
    split = cut(tiny(family).eval(), block=2, how="boundary")
    mask, ones = batch["attention_mask"], torch.ones_like(batch["attention_mask"])
    z = split.front(batch["input_ids"], mask)
    tokens = mask.bool()
    unmasked = split.front(batch["input_ids"], ones)
    if family != "gpt2":  # a causal model never attends to padding on the right
        assert not torch.allclose(unmasked[tokens], z[tokens])
    assert not torch.allclose(split.trunk(z, ones)[2], split.trunk(z, mask)[2])


@pytest.mark.parametrize("init", ["svd", "random"])
@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_full_rank_with_projected_residual_equals_the_whole_model(tiny, batch, family, k, init):
    model = tiny(family).eval()
    expected = whole(model, batch)
    split = cut(model, block=k, how="ffn_svd", rank=32, residual="project", init=init)
    scale = expected.abs().max()
    assert (through(split, batch) - expected).abs().max() / scale < 5e-6


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_full_rank_with_projected_residual_is_exact_to_5e_7_at_the_default_weight_scale(tiny, batch, k):
    model = tiny("bert", scale=1.0).eval()
    expected = whole(model, batch)
    split = cut(model, block=k, how="ffn_svd", rank=32, residual="project", init="svd")
    assert (through(split, batch) - expected).abs().max() <= 5e-7


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_ffn_cut_with_projected_residual_equals_the_whole_model(tiny, batch, family):
    model = tiny(family).eval()
    expected = whole(model, batch)
    split = cut(model, block=2, how="ffn", residual="project")
    assert split.front(batch["input_ids"], batch["attention_mask"]).shape == (6, 9, 64)
    assert (through(split, batch) - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_full_rank_codec_equals_the_whole_model(tiny, batch, family):
    model = tiny(family).eval()
    expected = whole(model, batch)
    split = cut(model, block=3, how="codec", rank=32, init="random")
    assert (through(split, batch) - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("family", ["bert", "distilbert", "gpt2"])
def test_dropping_the_residual_computes_the_papers_formula(tiny, batch, family):
    """At full rank the block's output equals a manual computation without the residual."""
    model = tiny(family).eval()
    blocks = find_blocks(model.backbone)[1]
    reference = copy.deepcopy(blocks[3])
    split = cut(model, block=4, how="ffn_svd", rank=32, residual="drop", init="svd")
    a = split.front.features(batch["input_ids"], batch["attention_mask"])
    z = split.front.codec(a, batch["attention_mask"])[0]
    if family == "bert":
        hidden = reference.output.dense(reference.intermediate(a))
        expected = reference.output.LayerNorm(hidden)
    elif family == "distilbert":
        expected = reference.output_layer_norm(reference.ffn(a))
    else:
        expected = reference.mlp(a)
    assert torch.allclose(split.trunk._hidden(z, None), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("how", ["boundary", "ffn", "ffn_svd", "codec"])
def test_every_parameter_is_on_exactly_one_side(tiny, family, how):
    model = tiny(family)
    names = {id(p) for p in model.parameters()}
    first = find_blocks(model.backbone)[1][1].get_submodule(model.architecture.first)
    replaced = {id(p) for p in first.parameters()} if how == "ffn_svd" else set()
    rank = 4 if how in ("ffn_svd", "codec") else None
    split = cut(model, block=2, how=how, rank=rank, residual="drop", init="random")
    edge, cloud = ({id(p) for p in half.parameters()} for half in (split.front, split.trunk))
    assert not edge & cloud
    assert names - replaced == {p for p in edge | cloud if p in names}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_trunk_holds_no_embeddings_and_refuses_token_ids(tiny, batch, family):
    split = cut(tiny(family), block=2, how="ffn_svd", rank=4, residual="drop", init="svd")
    assert all(99 not in p.shape for p in split.trunk.parameters())
    with pytest.raises((TypeError, ConfigError)):
        split.trunk(batch["input_ids"], batch["attention_mask"])
    with pytest.raises(TypeError, match="not token ids"):
        split.trunk.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])


def test_each_state_dict_holds_its_own_half_only(tiny):
    split = cut(tiny("bert"), block=2, how="ffn_svd", rank=4, init="svd")
    edge, cloud = split.front.state_dict(), split.trunk.state_dict()
    assert not any(name.startswith("model.encoder.layer.2") for name in edge)
    assert not any("embeddings" in name or "attention" in name for name in cloud if "layer" not in name)
    assert {n for n in edge if n.startswith("codec.")} == {"codec.directions.weight", "codec.scales.weight"}
    assert all(t.is_contiguous() for t in (*edge.values(), *cloud.values()))


@pytest.mark.parametrize("family", FAMILIES)
def test_training_with_dropout_draws_the_same_numbers_as_the_whole_model(tiny, batch, family):
    """Both halves, run in sequence, draw the same dropout masks as the whole model."""
    model = tiny(family, dropout=0.3).train()
    torch.manual_seed(0)
    expected = whole(model, batch)
    split = cut(model, block=2, how="boundary")
    torch.manual_seed(0)
    assert torch.equal(through(split, batch), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_evaluation_is_deterministic_with_dropout_configured(tiny, batch, family):
    split = cut(tiny(family, dropout=0.5), block=2, how="boundary")
    split.front.train(), split.trunk.train()
    assert not torch.equal(through(split, batch), through(split, batch))
    split.front.eval(), split.trunk.eval()
    assert torch.equal(through(split, batch), through(split, batch))


def test_cutting_restores_the_global_generator(tiny):
    model = tiny("bert")
    before = torch.get_rng_state()
    cut(model, block=2, how="ffn_svd", rank=4, init="svd", decoder="mlp", sentence_vector=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_sentence_pairs_keep_their_token_types(tiny, batch):
    model = tiny("bert").eval()
    ids, mask = batch["input_ids"], batch["attention_mask"]
    kinds = (torch.arange(9) >= 3).long().expand(6, 9) * mask
    expected = model(ids, mask, kinds)
    assert not torch.allclose(expected, model(ids, mask))
    split = cut(model, block=2, how="boundary")
    assert torch.equal(split.trunk(split.front(ids, mask, kinds), mask), expected)


@pytest.mark.parametrize("head", ["mean", "pooler", "last"])
def test_every_head_works_after_a_cut(tiny, batch, head):
    model = tiny("bert", head=head).eval()
    expected = whole(model, batch)
    assert torch.equal(through(cut(model, block=4, how="boundary"), batch), expected)


def test_head_last_uses_the_last_token_before_padding(tiny, batch):
    model = tiny("gpt2", head="last").eval()
    alone = model(batch["input_ids"][2:3, :3], batch["attention_mask"][2:3, :3])
    assert torch.allclose(whole(model, batch)[2:3], alone, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "options", "word"),
    [
        ("bert", {"block": 0}, "block=0"),
        ("bert", {"block": 5}, "1 to 4"),
        ("bert", {"block": 2, "rank": 33}, "rank"),
        ("bert", {"block": 2, "rank": None}, "rank"),
        ("bert", {"block": 2, "how": "middle"}, "how"),
        ("bert", {"block": 2, "how": "boundary", "decoder": "mlp"}, "decoder"),
        ("bert", {"block": 2, "how": "codec", "init": "svd"}, "factorize"),
        ("gpt2", {"block": 2, "init": "svd"}, "how=codec"),
        ("gpt2", {"block": 2, "how": "ffn", "rank": None}, "how=codec"),
        ("gpt2", {"block": 2, "decoder": "mlp"}, "how=codec"),
    ],
)
def test_invalid_options_are_refused(tiny, family, options, word):
    with pytest.raises(ConfigError) as caught:
        cut(tiny(family), **{"how": "ffn_svd", "rank": 4, **options})
    assert word in str(caught.value)
