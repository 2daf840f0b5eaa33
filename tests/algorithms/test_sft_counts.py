"""Parameters, bytes and operations: the specification's figures, exactly (check 3 and §8)."""

from __future__ import annotations

import pytest
import torch

from farshore.algorithms.split_fine_tuning import counts
from farshore.algorithms.split_fine_tuning.cut import cut
from farshore.algorithms.split_fine_tuning.heads import Classifier


def bert_on_meta(**config: int) -> Classifier:
    from transformers import BertConfig, BertModel

    with torch.device("meta"):
        backbone = BertModel(BertConfig(**config))
    return Classifier(backbone, 2, head="pooler")


MINILM = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
}


@pytest.mark.parametrize(
    ("config", "k", "r", "whole", "edge", "cloud", "total"),
    [
        ({}, 6, 8, 109_482_240, 61_646_656, 45_508_610, 107_155_266),
        (MINILM, 3, 4, 22_713_216, 16_061_200, 6_070_658, 22_131_858),
    ],
    ids=["bert-base", "minilm"],
)
def test_each_side_has_the_published_number_of_parameters(config, k, r, whole, edge, cloud, total):
    model = bert_on_meta(**config)
    assert sum(p.numel() for p in model.backbone.parameters()) == whole
    split = cut(model, block=k, how="ffn_svd", rank=r, residual="drop", init="svd")
    sides = counts.parameter_counts(split)
    assert (sides.edge, sides.cloud, sides.total) == (edge, cloud, total)
    model = bert_on_meta(**config)
    projected = cut(model, block=k, how="ffn_svd", rank=r, residual="project", init="svd")
    d = projected.plan.hidden
    assert counts.parameter_counts(projected).edge == edge
    assert counts.parameter_counts(projected).cloud - cloud == counts.residual_parameters(d, r)


@pytest.mark.parametrize(("d", "f", "r", "expected"), [(768, 3072, 8, 33_856), (384, 1536, 4, 9_232)])
def test_factors_replace_the_first_matrix(d, f, r, expected):
    assert counts.factor_parameters(d, f, r) == expected
    assert counts.residual_parameters(d, r) == {768: 6_912, 384: 1_920}[d]


def test_the_mean_head_leaves_the_unused_pooler_out():
    from transformers import BertConfig, BertModel

    with torch.device("meta"):
        backbone = BertModel(BertConfig(**MINILM))
    split = cut(Classifier(backbone, 2), block=3, how="ffn_svd", rank=4, residual="drop", init="svd")
    assert counts.parameter_counts(split).cloud == 6_070_658 - 147_840


def test_bytes_of_the_reference_step():
    tokens = 32 * 66
    assert counts.vanilla_bytes(tokens, 768) == 6_488_064
    assert counts.code_bytes(tokens, 3072) == 25_952_256
    assert [counts.code_bytes(tokens, 8, bits) for bits in (32, 8, 4)] == [67_584, 16_896, 8_448]
    assert counts.vanilla_bytes(tokens, 768) / counts.code_bytes(tokens, 8) == 96.0
    assert counts.code_bytes(3, 1, 4) == 2  # a nibble left over still takes a byte


def test_bytes_of_a_step_follow_the_plan(tiny):
    split = cut(tiny("bert"), block=2, how="ffn_svd", rank=4, init="svd", sentence_vector=6)
    assert counts.step_bytes(split.plan, 35, 6) == 35 * 4 * 4 + 6 * 6 * 4
    assert counts.step_bytes(split.plan, 35, 6, bits=4, micro=3) == 35 * 4 // 2 + 3 * 2 * 4 + 6 * 6 * 4
    boundary = cut(tiny("bert"), block=2, how="boundary")
    assert counts.step_bytes(boundary.plan, 35, 6) == counts.vanilla_bytes(35, 32)


def test_operations_of_the_reference_block():
    assert counts.block_flops(768, 66) == 24 * 768**2 + 4 * 66 * 768 == 14_358_528
    assert counts.codec_flops(768, 8) == 2 * 8 * 776
