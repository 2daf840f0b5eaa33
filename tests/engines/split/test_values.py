"""A split model has the values, gradients and steps of the whole model; the server releases unneeded graphs."""

from __future__ import annotations

import copy
import gc
from typing import Any

import pytest
import torch

from farshore.core.errors import RunFailedError

FAMILIES = ["bert", "roberta", "distilbert", "gpt2"]


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None and "farshore" not in n}


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-6) -> bool:
    return torch.allclose(a, b, rtol=1e-5, atol=tolerance)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["right", "left", "none"])
@pytest.mark.parametrize("family", FAMILIES)
def test_values_and_gradients_equal_the_whole_model(split, family, side, attention, classifier, batch):
    whole = classifier(family, attention=attention)
    mine = copy.deepcopy(whole)
    data = batch(side=side)
    expected = whole(**data)
    expected.loss.backward()

    def script(model, _):
        got = model(**data)
        got.loss.backward()
        assert torch.equal(got.logits, expected.logits)
        there = gradients(whole)
        here = gradients(model)
        assert here
        assert set(there) - set(here) == {n for n in there if any(f".{i}." in n for i in (1, 2, 3))}
        assert all(close(here[n], there[n]) for n in here)

    split(mine, script)
    assert split.result["backwards"] == 1


def without_key_biases(name, tensor):
    """Drop key biases: they shift all scores of a query equally; their gradient is noise that Adam scales up."""
    if name.endswith("key.bias"):
        return tensor[:0]
    if name.endswith("c_attn.bias"):
        query, _, value = tensor.chunk(3)
        return torch.cat([query, value])
    return tensor


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_ten_steps_with_clipping_and_a_schedule_equal_those_of_the_whole_model(split, family, classifier, batch):
    whole = classifier(family)
    mine = copy.deepcopy(whole)

    def train(model):
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, 10)
        losses = []
        for step in range(10):
            loss = model(**batch(step)).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
        return losses

    expected = train(whole)

    def script(model, attachment):
        assert train(model) == pytest.approx(expected, abs=1e-6)
        assert attachment.steps == 10
        state = model.state_dict()
        assert list(state) == list(whole.state_dict())
        for name, value in whole.state_dict().items():
            assert close(without_key_biases(name, state[name]), without_key_biases(name, value), 2e-6), name

    split(mine, script, optimizer={"name": "adamw", "weight_decay": 0.05})
    assert split.result["steps"] == 10


def test_evaluation_equals_the_whole_model_and_keeps_no_graph(split, classifier, batch):
    whole = classifier(dropout=0.3)
    mine = copy.deepcopy(whole)

    def script(model, _):
        model.eval()
        with torch.no_grad():
            for seed in range(5):
                assert torch.equal(model(**batch(seed)).logits, whole.eval()(**batch(seed)).logits)
        assert split.cloud.graphs == {}
        model.train()
        assert not torch.equal(model(**batch()).logits, model(**batch()).logits)

    split(mine, script)


def test_forwards_without_a_backward_are_freed(split, classifier, batch):
    def script(model, _):
        for seed in range(200):
            model(**batch(seed))
            assert len(split.cloud.graphs) <= 2
        gc.collect()
        with torch.no_grad():
            model(**batch())
        assert split.cloud.graphs == {}

    split(classifier(), script)


def test_keeping_too_many_losses_raises_a_clear_error(split, classifier, batch):
    def script(model, _):
        kept = [model(**batch(seed)).loss for seed in range(9)]
        assert kept

    with pytest.raises(RunFailedError, match="await their backward pass"):
        split(classifier(), script, graphs=8)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_remote_dropout_depends_only_on_the_step(split, attention, classifier, batch):
    seen = []

    def script(model, _):
        torch.manual_seed(len(seen))
        model.bert.embeddings.eval()
        model.bert.encoder.layer[0].eval()
        model.bert.encoder.layer[4].eval()
        model.dropout.eval()
        before = torch.random.get_rng_state()
        one, other = model(**batch()).logits, model(**batch()).logits
        assert torch.equal(torch.random.get_rng_state(), before)
        assert not torch.equal(one, other)
        seen.append((one.detach(), other.detach()))

    for _ in range(2):
        split(classifier(dropout=0.3, attention=attention), script)
    assert torch.equal(seen[0][0], seen[1][0])
    assert torch.equal(seen[0][1], seen[1][1])
