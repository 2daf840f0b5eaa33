"""The split plan that both sides compare: canonical JSON, hash, and refusal of differences."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from farshore.algorithms.split_fine_tuning.cut import cut
from farshore.algorithms.split_fine_tuning.plan import SplitPlan
from farshore.core.errors import RefusedError


@pytest.fixture
def plan(tiny) -> SplitPlan:
    return cut(tiny("bert"), block=2, how="ffn_svd", rank=4, init="svd").plan


def test_a_plan_survives_json(plan):
    again = SplitPlan.from_json(plan.to_json())
    assert again == plan
    assert again.digest == plan.digest
    assert (plan.width, plan.hidden, plan.ffn, plan.layers) == (4, 32, 64, 4)
    again.require_equal(plan)


@pytest.mark.parametrize(
    ("field", "value"), [("rank", 5), ("block", 3), ("residual", "drop"), ("seed", 1), ("fingerprint", "x")]
)
def test_any_difference_changes_the_hash_and_is_named(plan, field, value):
    if field == "fingerprint":
        other = dataclasses.replace(plan, fingerprint=value)
    else:
        other = dataclasses.replace(plan, options=dataclasses.replace(plan.options, **{field: value}))
    assert other.digest != plan.digest
    with pytest.raises(RefusedError) as caught:
        plan.require_equal(other)
    assert field in str(caught.value)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw.pop("hidden"),
        lambda raw: raw.update(extra=1),
        lambda raw: raw.update(layers="4"),
        lambda raw: raw.update(hidden=True),
        lambda raw: raw["options"].update(rank=10**9),
        lambda raw: raw["options"].update(block=-1),
        lambda raw: raw["options"].update(how="../.."),
        lambda raw: raw["options"].update(how=["ffn"]),
        lambda raw: raw.update(family="llama"),
        lambda raw: raw.update(family=["bert"]),
        lambda raw: raw.update(options=3),
    ],
)
def test_a_plan_from_a_peer_is_checked(plan, change):
    raw = json.loads(plan.to_json())
    change(raw)
    with pytest.raises(RefusedError):
        SplitPlan.from_json(json.dumps(raw))


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '{"options": {}}'])
def test_text_that_is_not_a_plan_is_refused(text):
    with pytest.raises(RefusedError):
        SplitPlan.from_json(text)


def test_one_changed_weight_changes_the_fingerprint(tiny):
    one, two = tiny("bert"), tiny("bert")
    assert one.origin.fingerprint == two.origin.fingerprint
    assert tiny("roberta").origin.fingerprint != one.origin.fingerprint
    backbone = two.backbone
    with torch.no_grad():
        next(iter(backbone.parameters()))[0, 0] += 1e-3
    assert type(two)(backbone, 3).origin.fingerprint != one.origin.fingerprint


def test_dropout_rates_are_not_part_of_a_models_identity(tiny):
    assert tiny("gpt2", dropout=0.0).origin.fingerprint == tiny("gpt2", dropout=0.2).origin.fingerprint
