"""Parameter and byte counts of docs/methods/split_fine_tuning.md, sections 3 and 11, counted on real modules."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from farshore.algorithms.split_fine_tuning.config import SplitFineTuning
from farshore.algorithms.split_fine_tuning.cut import cut
from farshore.algorithms.split_fine_tuning.heads import Classifier
from farshore.algorithms.split_fine_tuning.wire_codec import code_bytes


def bert_on_meta(**config: int) -> Classifier:
    from transformers import BertConfig, BertModel

    with torch.device("meta"):
        backbone = BertModel(BertConfig(**config))
    return Classifier(backbone, 2, head="pooler")


def count(module: nn.Module | None) -> int:
    return sum(p.numel() for p in module.parameters()) if module is not None else 0


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
def test_each_side_has_the_documented_number_of_parameters(config, k, r, whole, edge, cloud, total):
    model = bert_on_meta(**config)
    assert count(model.backbone) == whole
    split = cut(model, block=k, how="ffn_svd", rank=r, residual="drop", init="svd")
    assert (count(split.front), count(split.trunk)) == (edge, cloud)
    assert edge + cloud == total
    projected = cut(bert_on_meta(**config), block=k, how="ffn_svd", rank=r, residual="project", init="svd")
    d = projected.plan.hidden
    assert count(projected.front) == edge
    assert count(projected.trunk) - cloud == d * (r + 1) == {768: 6_912, 384: 1_920}[d]


@pytest.mark.parametrize(("config", "r", "expected"), [({}, 8, 33_856), (MINILM, 4, 9_232)])
def test_factors_replace_w1(config, r, expected):
    """r·d + r² + f·r + f parameters instead of f·d + f."""
    split = cut(bert_on_meta(**config), block=3, how="ffn_svd", rank=r, residual="drop", init="svd")
    assert count(split.front.codec) + count(split.trunk.codec) == expected


def test_head_mean_removes_the_unused_pooler():
    from transformers import BertConfig, BertModel

    with torch.device("meta"):
        backbone = BertModel(BertConfig(**MINILM))
    split = cut(Classifier(backbone, 2), block=3, how="ffn_svd", rank=4, residual="drop", init="svd")
    assert count(split.trunk) == 6_070_658 - 147_840


def test_code_bytes_of_the_reference_step():
    numbers, vanilla = 32 * 66 * 8, 32 * 66 * 768 * 4
    for bits, expected in (("raw", 67_584), ("int8", 16_896), ("int4", 8_448)):
        config = SplitFineTuning(up=bits, down=bits)
        assert code_bytes(numbers, 0, config) == 2 * expected
        assert code_bytes(numbers, 0, config, gradients=False) == expected
    assert vanilla == 6_488_064 == 96 * 67_584
    assert code_bytes(3, 0, SplitFineTuning(up="int4"), gradients=False) == 2  # padded to whole bytes
