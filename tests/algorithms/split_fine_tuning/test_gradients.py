"""Split training equals joint training: gradients, steps, micro-batches, padding."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from farshore.algorithms.split_fine_tuning.cut import cut
from farshore.algorithms.split_fine_tuning.training import parameter_groups

FAMILIES = ["bert", "roberta", "distilbert", "gpt2"]
CUTS: list[dict[str, Any]] = [
    {"how": "boundary"},
    {"how": "ffn_svd", "rank": 4, "init": "svd", "residual": "drop"},
    {"how": "ffn_svd", "rank": 4, "init": "random", "decoder": "mlp", "sentence_vector": 3},
    {"how": "codec", "rank": 4, "init": "random", "decoder": "mlp", "sentence_vector": 2},
]


def exchange(split: Any, batch: Any, denominator: int) -> torch.Tensor:
    """Run one micro-batch as the two programs do: send detached codes, return their gradients."""
    mask = batch["attention_mask"]
    z, sentence = split.front.codes(batch["input_ids"], mask)
    up = [t.detach().clone().requires_grad_() for t in (z, sentence) if t is not None]
    loss = cross_entropy(split.trunk(up[0], mask, *up[1:]), batch["labels"], reduction="sum") / denominator
    loss.backward()
    torch.autograd.backward([t for t in (z, sentence) if t is not None], [t.grad for t in up])
    return loss.detach()


def gradients(*modules: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {f"{i}.{n}": p.grad for i, m in enumerate(modules) for n, p in m.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("options", CUTS, ids=lambda o: "-".join(map(str, o.values())))
def test_split_gradients_equal_joint_gradients_exactly(tiny, batch, options):
    split = cut(tiny("bert"), block=2, **options)
    joint_front, joint_trunk = copy.deepcopy(split.front), copy.deepcopy(split.trunk)
    exchange(split, batch, 6)
    z, sentence = joint_front.codes(batch["input_ids"], batch["attention_mask"])
    logits = joint_trunk(z, batch["attention_mask"], sentence)
    (cross_entropy(logits, batch["labels"], reduction="sum") / 6).backward()
    mine, theirs = gradients(split.front, split.trunk), gradients(joint_front, joint_trunk)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[n], theirs[n]) for n in mine)
    assert mine["0.model.embeddings.word_embeddings.weight"].abs().max() > 0
    assert mine["1.head.linear.weight"].abs().max() > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_boundary_gradients_equal_those_of_the_unsplit_model(tiny, batch, family):
    model = tiny(family)
    whole = copy.deepcopy(model)
    split = cut(model, block=2, how="boundary")
    exchange(split, batch, 6)
    logits = whole(batch["input_ids"], batch["attention_mask"])
    (cross_entropy(logits, batch["labels"], reduction="sum") / 6).backward()
    # The halves share their modules with ``model``, so gradients can be compared under the whole model's names.
    mine = {n: p.grad for n, p in model.named_parameters()}
    for name, p in whole.named_parameters():
        assert torch.equal(mine[name], p.grad), name


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_twenty_adamw_steps_in_two_halves_equal_the_unsplit_model(tiny, batch, family):
    model = tiny(family, scale=1.0)
    whole = copy.deepcopy(model)
    split = cut(model, block=2, how="boundary")
    together = torch.optim.AdamW(parameter_groups(whole, 1e-3))
    edge = torch.optim.AdamW(parameter_groups(split.front, 1e-3))
    cloud = torch.optim.AdamW(parameter_groups(split.trunk, 1e-3))
    start = copy.deepcopy(whole.state_dict())
    for _ in range(20):
        for optimizer in (together, edge, cloud):
            optimizer.zero_grad()
        logits = whole(batch["input_ids"], batch["attention_mask"])
        cross_entropy(logits, batch["labels"]).backward()
        exchange(split, batch, 6)
        for optimizer in (together, edge, cloud):
            optimizer.step()
    mine = dict(model.named_parameters())
    assert max(float((mine[n] - p).detach().abs().max()) for n, p in whole.named_parameters()) <= 1e-5
    assert max(float((start[n] - p).detach().abs().max()) for n, p in whole.named_parameters()) > 1e-3


@pytest.mark.parametrize("options", CUTS, ids=lambda o: "-".join(map(str, o.values())))
def test_micro_batches_of_unequal_size_equal_one_batch(tiny, batch, options):
    one = cut(tiny("bert", scale=1.0), block=2, **options)
    many = cut(tiny("bert", scale=1.0), block=2, **options)
    loss = exchange(one, batch, 6)
    parts = [{k: v[i:j] for k, v in batch.items()} for i, j in ((0, 1), (1, 4), (4, 6))]
    losses = [exchange(many, part, 6) for part in parts]
    assert abs(float(loss - sum(losses))) < 1e-6
    expected, got = gradients(one.front, one.trunk), gradients(many.front, many.trunk)
    assert max(float((expected[n] - got[n]).abs().max()) for n in expected) <= 1e-5
    # A mean of means, the usual mistake, is far outside this tolerance.
    wrong = cut(tiny("bert", scale=1.0), block=2, **options)
    for part in parts:
        exchange(wrong, part, 3 * len(part["labels"]))
    bad = gradients(wrong.front, wrong.trunk)
    assert max(float((expected[n] - bad[n]).abs().max()) for n in expected) > 1e-3


@pytest.mark.parametrize("garbage", [0.0, 1e3])
@pytest.mark.parametrize("head", ["mean", "last", "pooler"])
def test_values_at_padding_change_nothing(tiny, batch, head, garbage):
    """Codes of padding need not be sent: outputs, losses and all other gradients are bit-identical."""
    split = cut(tiny("bert", head=head), block=2, how="ffn_svd", rank=8, init="svd")
    mask = batch["attention_mask"]
    z = split.front(batch["input_ids"], mask).detach()
    results = []
    for codes in (z.clone(), torch.where(mask.bool()[..., None], z, garbage)):
        codes.requires_grad_()
        split.trunk.zero_grad()
        logits = split.trunk(codes, mask)
        loss = cross_entropy(logits, batch["labels"])
        loss.backward()
        results.append((logits.detach(), loss.detach(), codes.grad, gradients(split.trunk)))
    (logits, loss, down, grads), (logits2, loss2, down2, grads2) = results
    assert torch.equal(logits, logits2)
    assert torch.equal(loss, loss2)
    assert torch.equal(down, down2)
    assert bool((down[mask == 0] == 0).all())
    assert bool((down[mask == 1] != 0).any())
    assert all(torch.equal(grads[n], grads2[n]) for n in grads)


@pytest.mark.parametrize("head", ["mean", "last"])
def test_nan_at_padding_does_not_reach_the_head(tiny, batch, head):
    layer, mask = tiny("bert", head=head).eval().head, batch["attention_mask"]
    hidden = torch.linspace(-1, 1, 6 * 9 * 32).view(6, 9, 32)
    poisoned = torch.where(mask.bool()[..., None], hidden, torch.nan).requires_grad_()
    logits = layer(poisoned, None, mask)
    assert torch.equal(logits, layer(hidden, None, mask))
    logits.sum().backward()
    assert bool((poisoned.grad[mask == 0] == 0).all())


def test_padding_has_no_influence_on_the_sentence_vector(tiny, batch):
    split = cut(tiny("bert"), block=2, how="ffn_svd", rank=4, init="svd", sentence_vector=5).front
    whole = split.codes(batch["input_ids"], batch["attention_mask"])[1]
    alone = split.codes(batch["input_ids"][2:3, :3], batch["attention_mask"][2:3, :3])[1]
    assert whole.shape == (6, 5)
    assert torch.allclose(whole[2:3], alone, atol=1e-5)
