"""A trained split model, written as one plain transformers model, computes the same function as its two halves."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from farshore.algorithms.split_fine_tuning.cut import SplitModel, cut
from farshore.algorithms.split_fine_tuning.export import Whole
from farshore.algorithms.split_fine_tuning.heads import Classifier
from farshore.algorithms.split_fine_tuning.merge import merge
from farshore.algorithms.split_fine_tuning.model_card import model_card
from farshore.core.errors import ConfigError

CUTS: dict[str, dict[str, Any]] = {
    "ffn_svd": {"how": "ffn_svd", "rank": 5, "init": "svd"},
    "ffn_svd, random": {"how": "ffn_svd", "rank": 5, "init": "random"},
    "ffn_svd, dropped": {"how": "ffn_svd", "rank": 5, "init": "svd", "residual": "drop"},
    "ffn": {"how": "ffn"},
    "ffn, dropped": {"how": "ffn", "residual": "drop"},
    "boundary": {"how": "boundary"},
}


#: Post-norm model types and their heads; DistilBERT has no pooler.
HEADS = [("bert", "auto"), ("bert", "pooler"), ("roberta", "auto"), ("roberta", "pooler"), ("distilbert", "auto")]


def inputs_of(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in batch.items() if name != "labels"}


def disturbed(split: SplitModel) -> SplitModel:
    """Change all weights, as training does: no part is what a plain model would give."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for half in (split.front, split.trunk):
            for parameter in half.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return split


def split_logits(split: SplitModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    z, sentence = split.front.codes(**batch)
    logits: torch.Tensor = split.trunk(z, batch["attention_mask"], sentence)
    return logits


@torch.no_grad()
@pytest.mark.parametrize("block", [1, 3, 4])
@pytest.mark.parametrize("how", CUTS)
@pytest.mark.parametrize(("family", "head"), HEADS)
def test_the_merged_model_computes_what_the_halves_compute(
    tiny: Callable[..., Classifier], batch: Any, family: str, how: str, block: int, head: str
) -> None:
    classifier = tiny(family, head=head, scale=3.0).eval()
    pretrained = copy.deepcopy(classifier.backbone)
    inputs = inputs_of(batch)
    split = disturbed(cut(classifier, block=block, **CUTS[how]))
    split.front.eval(), split.trunk.eval()
    expected = split_logits(split, inputs)
    backbone, merged_head = merge(split.front, split.trunk, pretrained)
    whole = Whole(backbone, merged_head, token_types=family == "bert").eval()
    torch.testing.assert_close(whole(**inputs), expected, rtol=2e-4, atol=2e-4)
    wider = sum(p.numel() for p in backbone.parameters()) - sum(p.numel() for p in pretrained.parameters())
    assert wider == (0 if how == "boundary" else 4 * 2 * 32 * (2 * 32 + 1))  # 4 blocks, 2 d units, d = 32


@torch.no_grad()
def test_a_pre_norm_model_can_be_merged_at_a_boundary(tiny: Callable[..., Classifier], batch: Any) -> None:
    classifier = tiny("gpt2", scale=3.0).eval()
    pretrained = copy.deepcopy(classifier.backbone)
    inputs = inputs_of(batch)
    split = disturbed(cut(classifier, block=2, how="boundary"))
    expected = split_logits(split, inputs)
    whole = Whole(*merge(split.front, split.trunk, pretrained), token_types=False).eval()
    torch.testing.assert_close(whole(**inputs), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"how": "codec", "rank": 5, "init": "random"}, "cut=codec"),
        ({"how": "ffn_svd", "rank": 5, "decoder": "mlp"}, "decoder=mlp"),
        ({"how": "ffn_svd", "rank": 5, "sentence_vector": 2}, "sentence_vector"),
    ],
)
def test_what_is_no_plain_model_is_refused(tiny: Callable[..., Classifier], options: dict[str, Any], why: str) -> None:
    classifier = tiny()
    pretrained = copy.deepcopy(classifier.backbone)
    split = cut(classifier, block=2, **options)
    with pytest.raises(ConfigError, match=f"cannot be written as a plain transformer: {why}") as caught:
        merge(split.front, split.trunk, pretrained)
    assert "cut=ffn_svd" in str(caught.value.hint)


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["mean", "last", "pooler"])
def test_the_readme_computes_the_same_logits(
    tiny: Callable[..., Classifier], batch: Any, tmp_path: Path, pooling: str
) -> None:
    """The snippet in the exported folder's README is run as it stands, but for the tokenizer."""
    from safetensors.torch import save_file

    classifier = tiny("bert", head=pooling).eval()
    classifier.backbone.save_pretrained(tmp_path)
    linear = classifier.head.linear
    save_file({"weight": linear.weight.detach(), "bias": linear.bias.detach()}, tmp_path / "head.safetensors")
    text = model_card(pooling, {0: "a", 1: "b", 2: "c"})
    code = text.partition("```python\n")[2].partition("```")[0]
    code = code.replace('AutoTokenizer.from_pretrained(".")', "None").replace('"."', repr(str(tmp_path)))
    code = code.replace('"head.safetensors"', repr(str(tmp_path / "head.safetensors")))
    code = "\n".join(line for line in code.splitlines() if not line.startswith("inputs = "))
    names: dict[str, Any] = {"inputs": inputs_of(batch)}
    exec(code, names)
    torch.testing.assert_close(names["logits"], classifier(**inputs_of(batch)), rtol=1e-4, atol=1e-4)
    assert "0 a, 1 b, 2 c" in text
