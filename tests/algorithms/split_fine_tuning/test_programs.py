"""The two programs train the same weights as the unsplit model, as one edge, and as one micro-batch per step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from farshore.algorithms.split_fine_tuning import cloud_program, edge_program, unsplit
from farshore.algorithms.split_fine_tuning.builders import Builder
from farshore.algorithms.split_fine_tuning.unsplit import train_unsplit

Weights = dict[str, torch.Tensor]

LOSSY = {"cut": "ffn_svd", "rank": 8, "up": "int4", "down": "int4", "dropout": 0.1}
#: One step is the whole training set, so that two edges' batches together are one edge's batch.
WHOLE_SET = {"batch_size": 24, "epochs": 6, "cut": "ffn_svd", "rank": 8, "init": "svd"}


def max_difference(a: Weights, b: Weights) -> float:
    """Return the largest difference between two sets of weights with equal names."""
    assert a.keys() == b.keys()
    assert a
    return max(float((a[n].detach().double() - b[n].detach().double()).abs().max()) for n in a)


def max_loss_difference(a: list[float], b: list[float]) -> float:
    assert abs(a[0] - a[-1]) > 0.002, "nothing was learned: the comparison says nothing"
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def side(weights: Weights, name: str) -> Weights:
    return {n.partition("/")[2]: w for n, w in weights.items() if n.startswith(f"{name}/")}


def test_split_training_over_the_wire_equals_unsplit_training(runner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = runner.config(epochs=7)  # 21 steps
    split = runner.run(config)
    losses: list[float] = []
    models: list[torch.nn.Module] = []
    real_step, real_whole = unsplit._step, Builder.unsplit

    def step(*args: Any) -> float:
        losses.append(real_step(*args))
        return losses[-1]

    def whole(self: Builder) -> Any:
        models.append(real_whole(self)[0])
        return models[0], real_whole(self)[1]

    monkeypatch.setattr(unsplit, "_step", step)
    monkeypatch.setattr(Builder, "unsplit", whole)
    reference = train_unsplit(config, 7, data=runner.find)
    assert len(losses) == 21
    assert max_loss_difference(split.losses, losses) <= 1e-6
    assert max_difference(split.joined(), dict(models[0].named_parameters())) <= 1e-5
    assert split.result["evaluations"] == reference["evaluations"]
    assert split.result["loss"] == pytest.approx(reference["loss"], abs=1e-6)


@pytest.mark.parametrize("edges", [1, 2])
def test_two_runs_with_dropout_and_random_rounding_give_the_same_bits(runner: Any, edges: int) -> None:
    config = runner.config(**LOSSY, average_every=2)
    a, b = runner.run(config, edges), runner.run(config, edges)
    assert a.losses == b.losses
    assert max_difference(a.weights(), b.weights()) == 0
    assert runner.run(runner.config(**LOSSY | {"dropout": 0.0}), edges).losses != a.losses


def test_unequal_micro_batches_equal_one_batch(runner: Any) -> None:
    one = runner.run(runner.config(epochs=4))
    many = runner.run(runner.config(epochs=4, micro_batches=3))
    sizes = [r.dense_bytes for r in many.rows if r.kind == "activation" and r.step == 0]
    assert len(set(sizes)) > 1, "all micro-batches are of one size: a mean of means would pass"
    assert max_loss_difference(one.losses, many.losses) <= 1e-6
    assert max_difference(_without_key_biases(one.weights()), _without_key_biases(many.weights())) <= 1e-5


@pytest.mark.parametrize("changes", [{}, LOSSY], ids=["exact", "lossy"])
def test_credits_change_nothing_but_time(runner: Any, changes: dict[str, Any]) -> None:
    one = runner.run(runner.config(**changes, micro_batches=4, credits=1))
    four = runner.run(runner.config(**changes, micro_batches=4, credits=4))
    assert one.losses == four.losses
    assert max_difference(one.weights(), four.weights()) == 0


def test_two_edges_train_the_trunk_as_one_edge_with_all_examples(runner: Any) -> None:
    """With a frozen front only the trunk learns, from the mean over the examples of both edges."""
    config = runner.config(**WHOLE_SET, freeze="front+codec")
    one, two = runner.run(config), runner.run(config, 2)
    assert max_loss_difference(one.losses, two.losses) <= 1e-6
    trunks = [_without_key_biases(side(o.weights(), "cloud")) for o in (one, two)]
    assert max_difference(*trunks) <= 1e-5  # another order of summation, whose rounding Adam scales up


def test_averaged_fronts_equal_one_edge_under_plain_gradient_descent(
    runner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradients of K edges sum to that of the whole batch, so the mean of K fronts after one step of plain gradient
    descent at rate K·lr equals one edge's step at rate lr. (Adam rescales each gradient: no such identity holds.)"""
    config = runner.config(**WHOLE_SET, average_every=1, average_encoding="raw")
    monkeypatch.setattr(cloud_program, "make_optimizer", plain_descent(0.05))
    monkeypatch.setattr(edge_program, "make_optimizer", plain_descent(0.05))
    one = runner.run(config)
    monkeypatch.setattr(edge_program, "make_optimizer", plain_descent(2 * 0.05))
    two = runner.run(config, 2)
    assert max_loss_difference(one.losses, two.losses) <= 1e-6
    assert max_difference(side(one.weights(), "cloud"), side(two.weights(), "cloud")) <= 1e-6
    fronts = [_without_statistics(side(o.weights(), e)) for o, e in ((one, "edge-0"), (two, "edge-0"), (two, "edge-1"))]
    assert max_difference(fronts[1], fronts[2]) == 0
    assert max_difference(fronts[0], fronts[1]) <= 1e-6


def test_averaged_fronts_are_equal_and_others_are_not(runner: Any) -> None:
    averaged = runner.run(runner.config(**LOSSY, average_every=3), 2).weights()
    alone = runner.run(runner.config(**LOSSY), 2).weights()
    pairs = [
        (_without_statistics(side(w, "edge-0")), _without_statistics(side(w, "edge-1"))) for w in (averaged, alone)
    ]
    assert max_difference(*pairs[0]) == 0
    assert max_difference(*pairs[1]) > 1e-4


def test_averaging_in_half_precision_keeps_small_steps(runner: Any) -> None:
    """bfloat16 weights near 1 have steps of 1/128: rounding weights instead of differences would lose the updates."""
    small = WHOLE_SET | {"learning_rate": 1e-4, "codec_lr_factor": 1.0, "average_every": 1}
    exact = runner.run(runner.config(**small, average_encoding="raw"), 2).weights()
    rounded = runner.run(runner.config(**small, average_encoding="bf16"), 2).weights()
    fronts = [_without_statistics(side(w, "edge-0")) for w in (exact, rounded)]
    assert 0 < max_difference(*fronts) <= 2e-5  # 6 steps of about 1e-4, each rounded by at most 1/256 twice


@pytest.mark.parametrize("cut", ["boundary", "ffn_svd"])
def test_not_sending_padding_changes_nothing(runner: Any, cut: str) -> None:
    ragged = runner.run(runner.config(cut=cut, rank=8, epochs=4))
    padded = runner.run(runner.config(cut=cut, rank=8, epochs=4, ragged=False))
    up = [sum(r.dense_bytes for r in o.rows if r.kind == "activation") for o in (ragged, padded)]
    assert up[0] < up[1]
    assert max_loss_difference(ragged.losses, padded.losses) == 0
    assert max_difference(ragged.weights(), padded.weights()) == 0


def test_the_number_of_steps_can_be_capped(runner: Any) -> None:
    outcome = runner.run(runner.config(epochs=5, steps=4))
    assert outcome.result["steps"] == len(outcome.losses) == 4
    assert [e["step"] for e in outcome.result["evaluations"]] == [3, 4]


def test_epochs_default_to_the_tasks(runner: Any) -> None:
    assert runner.run(runner.config(epochs=0, batch_size=24)).result["steps"] == 3  # SST-2: 3 epochs of one step


def test_an_uncompressed_cut_needs_few_calibration_samples(runner: Any) -> None:
    assert runner.run(runner.config(calibration_samples=1, steps=1)).result["steps"] == 1


def plain_descent(rate: float) -> Callable[..., Any]:
    """Return a factory of SGD optimizers without momentum, decay and warm-up."""

    def make(module: torch.nn.Module, config: Any, total: int, done: int = 0) -> Any:
        optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=rate)
        return optimizer, LambdaLR(optimizer, lambda step: 1.0)

    return make


def _without_statistics(weights: Weights) -> Weights:
    """Drop the running statistics, which differ between edges."""
    return {n: w for n, w in weights.items() if "statistics." not in n}


def _without_key_biases(weights: Weights) -> Weights:
    """Drop statistics and key biases, on which the loss does not depend: the gradient of a key bias is rounding noise,
    which Adam scales up to full steps."""
    return {n: w for n, w in _without_statistics(weights).items() if not n.endswith("key.bias")}
