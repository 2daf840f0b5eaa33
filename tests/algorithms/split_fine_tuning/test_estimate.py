"""What an estimate tells of split fine-tuning is what a run then sends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from farshore.algorithms.split_fine_tuning.workload import WORKLOAD
from farshore.core.errors import ConfigError, DataError
from farshore.core.seeds import Seed
from farshore.core.traffic_plan import Setting, TrafficPlan
from farshore.reports.estimate import estimate, planned_ledger
from farshore.runs.traffic import CHANNEL_KINDS

NAMES = ("node", "direction", "kind", "encoding", "round", "step", "micro")
SIZES = ("dense_bytes", "payload_bytes", "frame_bytes")
LOW_RANK = {"cut": "ffn_svd", "rank": 8, "dropout": 0.1}
#: What leaves a run unlike another: each is sent by some case.
CASES: dict[str, tuple[dict[str, Any], int]] = {
    "vanilla": ({}, 1),
    "raw codes": ({**LOW_RANK, "up": "raw", "down": "raw"}, 1),
    "int8, two edges": ({**LOW_RANK, "up": "int8", "down": "int8"}, 2),
    "int4, micro-batches": ({**LOW_RANK, "up": "int4", "down": "int4", "micro_batches": 3}, 2),
    "padded": ({**LOW_RANK, "up": "int4", "down": "int4", "ragged": False}, 1),
    "sentence vectors": ({**LOW_RANK, "up": "int2", "down": "int2", "sentence_vector": 4}, 1),
    "averaged fronts": ({**LOW_RANK, "up": "int4", "down": "int4", "average_every": 4}, 2),
    "frozen front": ({**LOW_RANK, "up": "int4", "freeze": "front+codec", "checkpoint_every": 4}, 1),
    "spare examples": ({"train_samples": 16, "spare_samples": 5, "eval_every": 2, "init": "svd"}, 1),
}


def plan(world: Any, config: Any, edges: int, assumed: Mapping[str, float] | None = None) -> TrafficPlan:
    nodes = tuple(f"edge-{i}" for i in range(edges))
    return WORKLOAD.plan(config, Setting(nodes, Seed(7), world.find, assumed or {}))


def counted(rows: Iterable[Mapping[str, Any]]) -> Counter[tuple[Any, ...]]:
    return Counter(tuple(row[n] for n in (*NAMES, *SIZES)) for row in rows if row["kind"] not in CHANNEL_KINDS)


def written(outcome: Any) -> Counter[tuple[Any, ...]]:
    return counted({n: getattr(row, n) for n in (*NAMES, *SIZES, "attempt")} for row in outcome.rows)


@pytest.mark.parametrize("case", CASES)
def test_a_run_sends_frame_by_frame_what_was_estimated(world: Any, case: str) -> None:
    changes, edges = CASES[case]
    config = world.config(**changes)
    expected = plan(world, config, edges)
    outcome = world.run(config, edges)
    assert counted(planned_ledger(expected).to_pylist()) == written(outcome)
    assert not expected.notes
    assert expected.baselines == {k: v for k, v in outcome.result["baselines"].items() if k in expected.baselines}


def test_sentences_that_are_assumed_are_told_and_come_near(world: Any) -> None:
    """24 sentences of 4 to 13 tokens, as their number and mean alone: batches are the same but for their padding."""
    config = world.config(**LOW_RANK, up="int8", down="int8")
    outcome = world.run(config)
    (edge,) = outcome.edges.values()
    told = {"examples": 24, "tokens": float(edge.shard.train.lengths.mean()), "held_out": 10}
    expected = plan(world, config, 1, told)
    found = estimate(expected, "split_fine_tuning", config.model_dump(mode="json"), 7)
    assert len(found.notes) == 1
    assert "24 training and 10 held-out sentences" in found.notes[0]
    sent = sum(row.payload_bytes for row in outcome.rows)
    assert found.report.communication.once.payload_bytes == pytest.approx(sent, rel=0.03)
    assert found.report.communication.once.frames == len([r for r in outcome.rows if r.kind not in CHANNEL_KINDS])


def test_what_cannot_be_assumed_is_refused(world: Any) -> None:
    config = world.config()
    with pytest.raises(ConfigError, match="by the name 'sentences'"):
        plan(world, config, 1, {"sentences": 3})
    with pytest.raises(ConfigError, match="needs both"):
        plan(world, config, 1, {"examples": 3})
    with pytest.raises(ConfigError, match="cannot be"):
        plan(world, config, 1, {"examples": 3, "tokens": 500})


def test_without_data_the_error_says_what_to_give(world: Any) -> None:
    world.data = {"tiny": world.data["tiny"]}
    with pytest.raises(DataError, match="depends on the sentences") as error:
        plan(world, world.config(), 1)
    assert "--assume examples=N" in error.value.hint
