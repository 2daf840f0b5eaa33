"""What a training script does to local gradients is also done to the remote ones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from farshore.core.errors import ConfigError


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-6) -> bool:
    return torch.allclose(a, b, rtol=1e-5, atol=tolerance)


def _same_after_steps(classifier: Any, split: Any, train: Callable[[Any], None], **settings: Any) -> None:
    """Assert that ``train`` has the same effect on a whole and on a split model."""
    whole = classifier()
    mine = copy.deepcopy(whole)
    train(whole)

    def script(model, _):
        train(model)
        state = model.state_dict()
        assert all(close(state[n], v, 2e-6) for n, v in whole.state_dict().items())

    split(mine, script, optimizer={"name": "sgd", "momentum": 0.9}, **settings)


@pytest.mark.parametrize("to_none", [True, False])
def test_gradients_accumulate_until_they_are_zeroed(split, to_none, batch, classifier):
    def train(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        for step in range(3):
            for micro in range(2):
                (model(**batch(10 * step + micro)).loss / 2).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=to_none)

    _same_after_steps(classifier, split, train)


def test_gradients_that_are_not_zeroed_are_used_again(split, batch, classifier):
    def train(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        for step in range(3):
            model(**batch(step)).loss.backward()
            optimizer.step()

    _same_after_steps(classifier, split, train)


@pytest.mark.parametrize("to_none", [True, False])
def test_zeroing_without_a_step_discards_the_remote_gradients(split, to_none, batch, classifier):
    def train(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        model(**batch(1)).loss.backward()
        optimizer.zero_grad(set_to_none=to_none)
        model(**batch(2)).loss.backward()
        optimizer.step()

    _same_after_steps(classifier, split, train)


def test_gradient_norm_equals_that_of_the_whole_model(split, classifier, batch):
    whole = classifier()
    mine = copy.deepcopy(whole)

    def norm(model):
        for micro in range(2):
            model(**batch(micro)).loss.backward()
        return float(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1))

    split(
        mine, lambda model, _: pytest.approx(norm(whole), rel=1e-5).__eq__(norm(model)) or pytest.fail("another norm")
    )


def test_two_pending_forwards_allow_backwards_in_any_order(split, batch, classifier):
    def train(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        first, second = model(**batch(1)).loss, model(**batch(2)).loss
        first.backward()
        second.backward(retain_graph=True)
        second.backward()
        optimizer.step()

    _same_after_steps(classifier, split, train)


def test_autograd_grad_leaves_remote_gradients_unchanged(split, classifier, batch):
    def script(model, _):
        loss = model(**batch()).loss
        word = model.bert.embeddings.word_embeddings.weight
        (gradient,) = torch.autograd.grad(loss, [word])
        assert gradient.abs().sum() > 0
        assert all(p.grad is None for p in split.cloud.segment.parameters())

    split(classifier(), script)


def test_frozen_blocks_do_not_change(split, classifier, batch):
    model = classifier()
    for p in model.bert.encoder.layer[2].parameters():
        p.requires_grad_(False)
    before = {n: t.clone() for n, t in model.state_dict().items()}

    def script(model, _):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(**batch()).loss.backward()
        optimizer.step()
        state = model.state_dict()
        for n, t in before.items():
            if ".layer.2." in n:
                assert torch.equal(state[n], t)
        assert not torch.equal(
            state["bert.encoder.layer.1.output.dense.weight"], before["bert.encoder.layer.1.output.dense.weight"]
        )

    split(model, script, optimizer={"name": "sgd"})


def test_an_optimizer_created_before_the_split_is_refused(split, classifier, batch):
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def script(model, _):
        model(**batch()).loss.backward()
        with pytest.raises(ConfigError, match=r"after farshore\.split"):
            optimizer.step()

    split(model, script)


def test_an_optimizer_without_the_proxy_takes_no_remote_step(split, classifier, batch):
    def script(model, attachment):
        other = torch.nn.Linear(2, 2)
        other(torch.ones(1, 2)).sum().backward()
        torch.optim.SGD(other.parameters(), lr=0.1).step()
        head = torch.optim.SGD(model.classifier.parameters(), lr=0.1)
        model(**batch()).loss.backward()
        head.step()
        assert attachment.steps == 0

    split(classifier(), script)
