"""Freezing, parameter groups, code statistics, and decoder extensions that are zero at initialization."""

from __future__ import annotations

import pytest
import torch

from farshore.algorithms.split_fine_tuning.calibration import calibrate
from farshore.algorithms.split_fine_tuning.cut import cut
from farshore.algorithms.split_fine_tuning.statistics import CodeStatistics
from farshore.algorithms.split_fine_tuning.training import freeze, parameter_groups

FAMILIES = ["bert", "roberta", "distilbert", "gpt2"]


@pytest.mark.parametrize("family", FAMILIES)
def test_biases_norms_and_codec_are_not_decayed(tiny, family):
    split = cut(tiny(family), block=2, how="codec", rank=4, init="random", decoder="mlp")
    for half in (split.front, split.trunk):
        groups = {g["name"]: g for g in parameter_groups(half, 1e-4, decay=0.02, codec_lr_factor=5.0)}
        ids = [id(p) for g in groups.values() for p in g["params"]]
        assert sorted(ids) == sorted(id(p) for p in half.parameters())
        assert all(p.dim() >= 2 for p in groups["decay"]["params"])
        assert all(p.dim() == 1 for p in groups["no_decay"]["params"])
        assert {id(p) for p in groups["codec"]["params"]} == {id(p) for p in half.codec.parameters()}
        assert [groups[n]["weight_decay"] for n in ("decay", "no_decay", "codec")] == [0.02, 0.0, 0.0]
        assert [groups[n]["lr"] for n in ("decay", "no_decay", "codec")] == [1e-4, 1e-4, 5e-4]
        torch.optim.AdamW(list(groups.values()))


@pytest.mark.parametrize("family", FAMILIES)
def test_freezing_affects_exactly_the_named_parts(tiny, batch, family):
    def trained(what: str) -> set[str]:
        front = cut(tiny(family), block=2, how="codec", rank=4, init="random").front
        left = freeze(front, what)
        z = front(batch["input_ids"], batch["attention_mask"])
        assert z.requires_grad is left
        if left:
            z.sum().backward()
        names = {n for n, p in front.named_parameters() if p.grad is not None}
        assert names == {n for n, p in front.named_parameters() if p.requires_grad}
        assert sum(len(g["params"]) for g in parameter_groups(front, 1e-4)) == len(names)
        return names

    everything = trained("none")
    codec = {"codec.directions.weight", "codec.scales.weight"}
    assert codec < everything
    without = trained("embeddings")
    gone = everything - without
    assert gone
    assert all("embeddings" in n or n.startswith(("model.wte", "model.wpe")) for n in gone)
    assert not any("word_embeddings" in n or "wte" in n for n in without)
    assert trained("front") == codec
    assert trained("front+codec") == set()


def test_statistics_follow_the_codes_and_are_saved():
    generator = torch.Generator().manual_seed(0)
    scale, shift = torch.tensor([0.1, 1.0, 10.0]), torch.tensor([5.0, 0.0, -30.0])
    statistics = CodeStatistics(3, momentum=0.9)
    mask = torch.ones(8, 20, dtype=torch.long)
    mask[:, 15:] = 0
    for _ in range(200):
        z = torch.randn(8, 20, 3, generator=generator) * scale + shift
        statistics.update(z.masked_fill(mask[..., None] == 0, 1e6), mask)
    assert torch.allclose(statistics.mean, shift, atol=0.3, rtol=0.05)
    assert torch.allclose(statistics.deviation, scale, rtol=0.1)
    assert int(statistics.updates) == 200
    again = CodeStatistics(3)
    again.load_state_dict(statistics.state_dict())
    assert torch.equal(again.deviation, statistics.deviation)


def test_drifting_means_count_as_variance():
    """The mean of the batch variances alone would be zero for a code that is constant within each batch."""
    statistics = CodeStatistics(1, momentum=0.9)
    mask = torch.ones(1, 4, dtype=torch.long)
    for i in range(400):
        statistics.update(torch.full((1, 4, 1), 1.0 if i % 2 else -1.0), mask)
    assert float(statistics.deviation) == pytest.approx(1.0, abs=0.1)


def test_a_batch_of_padding_alone_is_ignored():
    statistics = CodeStatistics(2)
    statistics.update(torch.full((1, 4, 2), 7.0), torch.zeros(1, 4, dtype=torch.long))
    assert int(statistics.updates) == 0
    assert torch.equal(statistics.mean, torch.zeros(2))


@pytest.mark.parametrize("how", ["ffn_svd", "codec"])
@pytest.mark.parametrize("residual", ["drop", "project"])
def test_network_and_sentence_vector_equal_the_linear_decoder_at_first(tiny, batch, how, residual):
    samples = [{k: v for k, v in batch.items() if k != "labels"}]
    logits = []
    for extra in ({}, {"decoder": "mlp"}, {"sentence_vector": 5}, {"decoder": "mlp", "sentence_vector": 5}):
        split = cut(tiny("bert").eval(), block=2, how=how, rank=6, residual=residual, **extra)
        split.trunk.initialize_codec(calibrate(split.front, samples).init)
        z, sentence = split.front.codes(batch["input_ids"], batch["attention_mask"])
        assert (sentence is None) == ("sentence_vector" not in extra)
        logits.append(split.trunk(z, batch["attention_mask"], sentence).detach())
    for other in logits[1:]:
        assert torch.allclose(other, logits[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("extra", [{"decoder": "mlp"}, {"sentence_vector": 5}])
@pytest.mark.parametrize("how", ["ffn_svd", "codec"])
def test_network_and_sentence_vector_learn(tiny, batch, how, extra):
    """After a few steps all of their parameters have changed."""
    split = cut(tiny("bert"), block=2, how=how, rank=6, init="random", **extra)
    optimizer = torch.optim.AdamW([*split.front.parameters(), *split.trunk.parameters()], 1e-3)
    before = {n: p.detach().clone() for n, p in split.trunk.codec.named_parameters()}
    queries = None if split.front.codec.sentence is None else split.front.codec.sentence.weight.detach().clone()
    for _ in range(3):
        z, sentence = split.front.codes(batch["input_ids"], batch["attention_mask"])
        logits = split.trunk(z, batch["attention_mask"], sentence)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, batch["labels"]).backward()
        optimizer.step()
    still = [n for n, p in split.trunk.codec.named_parameters() if torch.equal(before[n], p)]
    assert still == []
    if queries is not None:
        assert not torch.equal(queries, split.front.codec.sentence.weight)
