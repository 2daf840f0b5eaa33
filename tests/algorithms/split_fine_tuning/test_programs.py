"""The two programs of split fine-tuning train what an unsplit model, one edge or one micro-batch would have trained."""

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
#: One step is the whole training set, so that the edges' halves together are one edge's batch.
WHOLE_SET = {"batch_size": 24, "epochs": 6, "cut": "ffn_svd", "rank": 8, "init": "svd"}


def apart(a: Weights, b: Weights) -> float:
    """The largest difference between two sets of weights of the same names."""
    assert a.keys() == b.keys()
    assert a
    return max(float((a[n].detach().double() - b[n].detach().double()).abs().max()) for n in a)


def losses_apart(a: list[float], b: list[float]) -> float:
    assert abs(a[0] - a[-1]) > 0.002, "nothing was learned: the comparison says nothing"
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def side(weights: Weights, name: str) -> Weights:
    return {n.partition("/")[2]: w for n, w in weights.items() if n.startswith(f"{name}/")}


def test_split_training_over_the_wire_equals_unsplit_training(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = world.config(epochs=7)  # 21 steps
    split = world.run(config)
    losses: list[float] = []
    models: list[torch.nn.Module] = []
    real_step, real_whole = unsplit._step, Builder.whole

    def step(*args: Any) -> float:
        losses.append(real_step(*args))
        return losses[-1]

    def whole(self: Builder) -> Any:
        models.append(real_whole(self)[0])
        return models[0], real_whole(self)[1]

    monkeypatch.setattr(unsplit, "_step", step)
    monkeypatch.setattr(Builder, "whole", whole)
    reference = train_unsplit(config, 7, data=world.find)
    assert len(losses) == 21
    assert losses_apart(split.losses, losses) <= 1e-6
    assert apart(split.joined(), dict(models[0].named_parameters())) <= 1e-5
    assert split.result["evaluations"] == reference["evaluations"]
    assert split.result["loss"] == pytest.approx(reference["loss"], abs=1e-6)


@pytest.mark.parametrize("edges", [1, 2])
def test_two_runs_with_dropout_and_random_rounding_give_the_same_bits(world: Any, edges: int) -> None:
    config = world.config(**LOSSY, average_every=2)
    a, b = world.run(config, edges), world.run(config, edges)
    assert a.losses == b.losses
    assert apart(a.weights(), b.weights()) == 0
    assert world.run(world.config(**LOSSY | {"dropout": 0.0}), edges).losses != a.losses


def test_unequal_micro_batches_equal_one_batch(world: Any) -> None:
    one = world.run(world.config(epochs=4))
    many = world.run(world.config(epochs=4, micro_batches=3))
    sizes = [r.dense_bytes for r in many.rows if r.kind == "activation" and r.step == 0]
    assert len(set(sizes)) > 1, "all micro-batches are of one size: a mean of means would pass"
    assert losses_apart(one.losses, many.losses) <= 1e-6
    assert apart(_driven(one.weights()), _driven(many.weights())) <= 1e-5


@pytest.mark.parametrize("changes", [{}, LOSSY], ids=["exact", "lossy"])
def test_credits_change_nothing_but_time(world: Any, changes: dict[str, Any]) -> None:
    one = world.run(world.config(**changes, micro_batches=4, credits=1))
    four = world.run(world.config(**changes, micro_batches=4, credits=4))
    assert one.losses == four.losses
    assert apart(one.weights(), four.weights()) == 0


def test_two_edges_train_the_trunk_as_one_edge_with_all_examples(world: Any) -> None:
    """With a frozen front only the trunk learns, and the mean over both edges' examples is the whole batch's."""
    config = world.config(**WHOLE_SET, freeze="front+codec")
    one, two = world.run(config), world.run(config, 2)
    assert losses_apart(one.losses, two.losses) <= 1e-6
    trunks = [_driven(side(o.weights(), "cloud")) for o in (one, two)]
    assert apart(*trunks) <= 1e-5  # sums of other order, which Adam scales up; processors round differently


def test_averaged_fronts_equal_one_edge_under_plain_gradient_descent(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each edge's gradient is its examples' part of the whole batch's, so the mean of K fronts after one step of plain
    gradient descent at rate K·lr is one edge's step at rate lr. (Adam rescales each edge's gradient by itself: it has
    no such identity.)"""
    config = world.config(**WHOLE_SET, average_every=1, average_encoding="raw")
    monkeypatch.setattr(cloud_program, "make_optimizer", plain_descent(0.05))
    monkeypatch.setattr(edge_program, "make_optimizer", plain_descent(0.05))
    one = world.run(config)
    monkeypatch.setattr(edge_program, "make_optimizer", plain_descent(2 * 0.05))
    two = world.run(config, 2)
    assert losses_apart(one.losses, two.losses) <= 1e-6
    assert apart(side(one.weights(), "cloud"), side(two.weights(), "cloud")) <= 1e-6
    fronts = [_without_statistics(side(o.weights(), e)) for o, e in ((one, "edge-0"), (two, "edge-0"), (two, "edge-1"))]
    assert apart(fronts[1], fronts[2]) == 0
    assert apart(fronts[0], fronts[1]) <= 1e-6


def test_averaged_fronts_start_the_next_step_alike_and_apart_otherwise(world: Any) -> None:
    averaged = world.run(world.config(**LOSSY, average_every=3), 2).weights()
    alone = world.run(world.config(**LOSSY), 2).weights()
    pairs = [
        (_without_statistics(side(w, "edge-0")), _without_statistics(side(w, "edge-1"))) for w in (averaged, alone)
    ]
    assert apart(*pairs[0]) == 0
    assert apart(*pairs[1]) > 1e-4


def test_averaging_in_half_precision_keeps_small_steps(world: Any) -> None:
    """A weight near 1 in bfloat16 has steps of 1/128: rounding weights, not differences, would lose the training."""
    small = WHOLE_SET | {"learning_rate": 1e-4, "codec_lr_factor": 1.0, "average_every": 1}
    exact = world.run(world.config(**small, average_encoding="raw"), 2).weights()
    rounded = world.run(world.config(**small, average_encoding="bf16"), 2).weights()
    fronts = [_without_statistics(side(w, "edge-0")) for w in (exact, rounded)]
    assert 0 < apart(*fronts) <= 2e-5  # 6 steps of about 1e-4, each rounded by at most 1/256 twice


@pytest.mark.parametrize("cut", ["boundary", "ffn_svd"])
def test_padding_left_at_home_changes_nothing(world: Any, cut: str) -> None:
    ragged = world.run(world.config(cut=cut, rank=8, epochs=4))
    padded = world.run(world.config(cut=cut, rank=8, epochs=4, ragged=False))
    up = [sum(r.dense_bytes for r in o.rows if r.kind == "activation") for o in (ragged, padded)]
    assert up[0] < up[1]
    assert losses_apart(ragged.losses, padded.losses) == 0
    assert apart(ragged.weights(), padded.weights()) == 0


def test_the_number_of_steps_can_be_capped(world: Any) -> None:
    outcome = world.run(world.config(epochs=5, steps=4))
    assert outcome.result["steps"] == len(outcome.losses) == 4
    assert [e["step"] for e in outcome.result["evaluations"]] == [3, 4]


def test_without_epochs_the_task_decides(world: Any) -> None:
    assert world.run(world.config(epochs=0, batch_size=24)).result["steps"] == 3  # SST-2: 3 epochs of one step


def test_a_cut_that_decomposes_nothing_needs_few_examples_to_calibrate(world: Any) -> None:
    assert world.run(world.config(calibration_samples=1, steps=1)).result["steps"] == 1


def plain_descent(rate: float) -> Callable[..., Any]:
    """A maker of optimizers without momentum, decay and warm-up."""

    def make(module: torch.nn.Module, config: Any, total: int, done: int = 0) -> Any:
        optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=rate)
        return optimizer, LambdaLR(optimizer, lambda step: 1.0)

    return make


def _without_statistics(weights: Weights) -> Weights:
    """Each edge keeps its own running statistics of the codes it sends."""
    return {n: w for n, w in weights.items() if "statistics." not in n}


def _driven(weights: Weights) -> Weights:
    """Weights that the loss depends on. Attention does not change when all keys move alike: the gradient of a key's
    bias is rounding noise, which Adam scales up to full steps."""
    return {n: w for n, w in _without_statistics(weights).items() if not n.endswith("key.bias")}
