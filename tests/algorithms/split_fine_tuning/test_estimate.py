"""The traffic estimate of split fine-tuning equals the traffic of a run."""

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
#: Settings that change the messages of a run.
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


def plan(runner: Any, config: Any, edges: int, assumed: Mapping[str, float] | None = None) -> TrafficPlan:
    nodes = tuple(f"edge-{i}" for i in range(edges))
    return WORKLOAD.plan(config, Setting(nodes, Seed(7), runner.find, assumed or {}))


def counted(rows: Iterable[Mapping[str, Any]]) -> Counter[tuple[Any, ...]]:
    return Counter(tuple(row[n] for n in (*NAMES, *SIZES)) for row in rows if row["kind"] not in CHANNEL_KINDS)


def written(outcome: Any) -> Counter[tuple[Any, ...]]:
    return counted({n: getattr(row, n) for n in (*NAMES, *SIZES, "attempt")} for row in outcome.rows)


@pytest.mark.parametrize("case", CASES)
def test_a_run_sends_the_estimated_frames(runner: Any, case: str) -> None:
    changes, edges = CASES[case]
    config = runner.config(**changes)
    expected = plan(runner, config, edges)
    outcome = runner.run(config, edges)
    assert counted(planned_ledger(expected).to_pylist()) == written(outcome)
    assert not expected.notes
    assert expected.baselines == {k: v for k, v in outcome.result["baselines"].items() if k in expected.baselines}


def test_an_estimate_from_assumed_sentences_is_close_and_says_so(runner: Any) -> None:
    """24 sentences of 4 to 13 tokens, given only their number and mean length."""
    config = runner.config(**LOW_RANK, up="int8", down="int8")
    outcome = runner.run(config)
    (edge,) = outcome.edges.values()
    assumed = {"examples": 24, "tokens": float(edge.shard.train.lengths.mean()), "held_out": 10}
    expected = plan(runner, config, 1, assumed)
    found = estimate(expected, "split_fine_tuning", config.model_dump(mode="json"), 7)
    assert len(found.notes) == 1
    assert "24 training and 10 held-out sentences" in found.notes[0]
    sent = sum(row.payload_bytes for row in outcome.rows)
    assert found.report.communication.once.payload_bytes == pytest.approx(sent, rel=0.03)
    assert found.report.communication.once.frames == len([r for r in outcome.rows if r.kind not in CHANNEL_KINDS])


def test_invalid_assumptions_are_refused(runner: Any) -> None:
    config = runner.config()
    with pytest.raises(ConfigError, match="unknown assumption 'sentences'"):
        plan(runner, config, 1, {"sentences": 3})
    with pytest.raises(ConfigError, match="needs the number of examples"):
        plan(runner, config, 1, {"examples": 3})
    with pytest.raises(ConfigError, match="impossible assumption"):
        plan(runner, config, 1, {"examples": 3, "tokens": 500})


def test_missing_data_suggests_assumptions(runner: Any) -> None:
    runner.data = {"tiny": runner.data["tiny"]}
    with pytest.raises(DataError, match="depends on the lengths of the task's sentences") as error:
        plan(runner, runner.config(), 1)
    assert "--assume examples=N" in error.value.hint
