"""Cloud and edges refuse invalid messages and messages out of turn, with the sender's name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from farshore.algorithms.split_fine_tuning.plan import CutOptions, SplitPlan
from farshore.algorithms.split_fine_tuning.protocol import (
    CodecValues,
    Done,
    Evaluated,
    EvaluationBatch,
    FirstMicroBatch,
    FrontWeights,
    Gradient,
    MicroBatch,
    Offer,
    Saved,
    StepsPerEpoch,
)
from farshore.core.control import Control
from farshore.core.errors import RefusedError, WireError
from farshore.core.message import Message, Tensor

PLAN = SplitPlan(CutOptions(2, "ffn_svd", 8), "bert", 3, 32, 64, 2, "mean", "0" * 32)
OFFER = Offer(PLAN.to_json(), "0" * 32, examples=10, parameters=5, trains=True)
Change = Callable[[Message], Message]


def with_fields(message: Message, **changes: Any) -> Message:
    fields = {**message.fields, **changes}
    return replace(message, fields={name: value for name, value in fields.items() if value is not None})


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        (Message("control"), "expected 'offer', got a 'control' message"),
        (Message("activation"), "expected 'offer', got a 'activation' message"),
        (with_fields(OFFER.message(), plan=None), "'plan' is missing"),
        (with_fields(OFFER.message(), trains=1), "expected bool, got int"),
        (with_fields(OFFER.message(), examples="10"), "expected int, got str"),
        (with_fields(OFFER.message(), examples=0), "0 examples"),
        (with_fields(OFFER.message(), address="x"), "unknown field 'address'"),
    ],
)
def test_an_invalid_offer_is_refused(message: Message, complaint: str) -> None:
    with pytest.raises(WireError, match=f"edge 'x': .*{complaint}"):
        Offer.read(message, "edge 'x'")
    assert Offer.read(OFFER.message(), "edge 'x'") == OFFER


def run_with(runner: Any, owner: str, kind: type[Control], change: Change, **config: Any) -> None:
    """Run with all messages of a type to ``owner`` changed."""

    def hook(receiver: str, message: Message) -> Message:
        return change(message) if receiver == owner and kind.matches(message) else message

    runner.run(runner.config(epochs=1, **config), 2, on_receive=hook)


def tensors(message: Message, **changes: Any) -> Message:
    found = {**message.tensors, **{name: a if a is None else Tensor(a) for name, a in changes.items()}}
    return replace(message, tensors={name: tensor for name, tensor in found.items() if tensor is not None})


@pytest.mark.parametrize(
    ("kind", "change", "complaint", "config"),
    [
        (Offer, lambda m: replace(m, step=1), r"expected 'control' 0\.0, got 'control' 1\.0", {}),
        (Offer, lambda m: with_fields(m, labels=b""), "invalid 'offer' message: expected str", {}),
        (CodecValues, lambda m: Evaluated().message(), "expected 'codec', got a 'control'", {}),
        (CodecValues, lambda m: with_fields(m, rank=8), "unknown field 'rank'", {}),
        (CodecValues, lambda m: tensors(m, code_mean=np.zeros(3, np.float32)), r"shape \(3,\), expected \(32,\)", {}),
        (CodecValues, lambda m: tensors(m, code_mean=None), "the codec has the tensors", {}),
        (FirstMicroBatch, lambda m: replace(m, step=1), r"expected 'activation' 0\.0, got 'activation' 1\.0", {}),
        (FirstMicroBatch, lambda m: replace(m, kind="evaluation"), "expected 'activation', got a 'evaluation'", {}),
        (FirstMicroBatch, lambda m: tensors(m, ids=np.zeros(3, np.int64)), "sent the unknown tensor 'ids'", {}),
        (
            MicroBatch,
            lambda m: with_fields(m, examples=4, micros=1) if m.micro else m,
            "unknown field 'examples'",
            {"micro_batches": 2},
        ),
        (
            MicroBatch,
            lambda m: replace(m, micro=2) if m.micro else m,
            r"expected 'activation' 0\.1, got 'activation' 0\.2",
            {"micro_batches": 2},
        ),
        (
            FrontWeights,
            lambda m: replace(m, step=3),
            r"expected 'weights' 1\.0, got 'weights' 3\.0",
            {"average_every": 1},
        ),
        (FrontWeights, lambda m: with_fields(m, weight=1.0), "unknown field 'weight'", {"average_every": 1}),
        (EvaluationBatch, lambda m: replace(m, micro=5), r"expected 'evaluation' 3\.0, got 'evaluation' 3\.5", {}),
        (EvaluationBatch, lambda m: with_fields(m, examples=5), "unknown field 'examples'", {}),
        (Evaluated, lambda m: with_fields(m, what="done"), "expected 'evaluation', 'evaluated', got.*'done'", {}),
        (Evaluated, lambda m: with_fields(m, count=1), "invalid 'evaluated' message: unknown field 'count'", {}),
    ],
)
def test_the_cloud_refuses_a_message(
    runner: Any, kind: type[Control], change: Change, complaint: str, config: dict[str, Any]
) -> None:
    with pytest.raises(WireError, match=f"^edge 'edge-0'.*{complaint}"):
        run_with(runner, "server", kind, change, **config)


@pytest.mark.parametrize(
    ("kind", "change", "complaint", "config"),
    [
        (StepsPerEpoch, lambda m: with_fields(m, steps_per_epoch=0), "0 steps per epoch", {}),
        (StepsPerEpoch, lambda m: with_fields(m, steps_per_epoch="3"), "expected int, got str", {}),
        (StepsPerEpoch, lambda m: Done().message(), "expected 'schedule', got.*'done'", {}),
        (CodecValues, lambda m: tensors(m, code_mean=None), "the codec has the tensors", {}),
        (Gradient, lambda m: with_fields(m, norm=1.0), "unknown field 'norm'", {}),
        (Gradient, lambda m: replace(m, step=9), r"expected 'gradient' 0\.0, got 'gradient' 9\.0", {}),
        (Gradient, lambda m: tensors(m, codes=m.array("codes")[1:]), "'codes' is float32 of shape", {}),
        (Gradient, lambda m: tensors(m, codes=m.array("codes").astype(np.float64)), "'codes' is float64", {}),
        (Gradient, lambda m: tensors(m, codes=None), "'codes' is missing", {}),
        (Gradient, lambda m: tensors(m, mean=np.zeros(32, np.float16)), "unknown tensor 'mean'", {}),
        (FrontWeights, lambda m: replace(m, tensors={}), "is missing", {"average_every": 1}),
        (FrontWeights, lambda m: replace(m, kind="codec"), "expected 'weights', got a 'codec'", {"average_every": 1}),
        (
            Saved,
            lambda m: replace(m, step=9),
            r"expected 'control' 3\.0, got 'control' 9\.0",
            {"freeze": "front+codec"},
        ),
        (Done, lambda m: Saved().message(step=3), "expected 'done', got.*'saved'", {}),
    ],
)
def test_an_edge_refuses_a_message(
    runner: Any, kind: type[Control], change: Change, complaint: str, config: dict[str, Any]
) -> None:
    with pytest.raises(WireError, match=f"^node 'edge-1': the cloud: .*{complaint}"):
        run_with(runner, "edge-1", kind, change, **config)


def test_an_invalid_plan_in_an_offer_names_the_edge(runner: Any) -> None:
    with pytest.raises(RefusedError, match="edge 'edge-0' and the cloud: invalid split plan"):
        run_with(runner, "server", Offer, lambda m: with_fields(m, plan="{}"))
