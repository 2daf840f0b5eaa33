"""Parameter groups of a task."""

from __future__ import annotations

from torch import nn

from farshore.engines.data_parallel.task import decay_groups


def test_biases_norms_and_named_parameters_have_no_weight_decay() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2), nn.Embedding(5, 3))
    model[2].bias.requires_grad_(False)
    decayed, others = decay_groups(model, also_without=("3.",))
    assert decayed.weight_decay is None
    assert others.weight_decay == 0
    assert [id(p) for p in decayed.parameters] == [id(model[0].weight), id(model[2].weight)]
    named = {id(p) for p in others.parameters}
    assert named == {id(p) for p in (model[0].bias, model[1].weight, model[1].bias, model[3].weight)}


def test_empty_groups_are_left_out() -> None:
    assert len(decay_groups(nn.Linear(3, 2, bias=False))) == 1
