from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture
def bench(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("sft_arms")


def result(bench: ModuleType, arm: Any, seed: int, dev: float, **more: Any) -> Any:
    values = {
        "unused": dev,
        "code_bytes": 10,
        "payload_bytes": 20,
        "frame_bytes": 24,
        "vanilla_bytes": 960,
        "seconds": 1.0,
        **more,
    }
    return bench.Result(task="sst2", setup="8000x3", arm=arm.key, seed=seed, dev=dev, **values)


def test_the_arms_have_the_compression_of_the_goals(bench: ModuleType) -> None:
    ratios = {a.name: a.code_ratio(384) for a in bench.arms()}
    for place in ("L-1", "L/2"):
        assert ratios[f"paper r4 fp32 {place}"] == 96
        assert [ratios[f"recipe r{r} int4 {place}"] for r in (32, 8, 4, 2)] == [96, 384, 768, 1536]
    assert {a.block(6) for a in bench.arms() if a.place == "L-1"} == {5}
    assert {a.block(6) for a in bench.arms() if a.place == "L/2"} == {3}
    assert len({a.key for a in bench.arms()}) == len(bench.arms()) == 11


def test_stored_results_are_found_by_their_settings(bench: ModuleType, tmp_path: Path) -> None:
    arm = bench.arms()[3]
    path = tmp_path / "results.jsonl"
    bench.Results(path).add(result(bench, arm, 1, 0.9))
    again = bench.Results(path)
    assert again.find("sst2", "8000x3", arm, 1).dev == 0.9
    assert again.find("sst2", "8000x3", arm, 2) is None
    assert again.find("sst2", "4000x2", arm, 1) is None
    assert again.find("sst2", "8000x3", replace(arm, codec_lr=3.0), 1) is None


def test_a_truncated_line_is_dropped_and_overwritten(bench: ModuleType, tmp_path: Path) -> None:
    arm, path = bench.arms()[0], tmp_path / "results.jsonl"
    results = bench.Results(path)
    results.add(result(bench, arm, 1, 0.9))
    results.add(result(bench, arm, 2, 0.8))
    path.write_bytes(path.read_bytes()[:-25])
    cut = bench.Results(path)
    assert [r.seed for r in cut.all] == [1]
    cut.add(result(bench, arm, 3, 0.7))
    assert [r.seed for r in bench.Results(path).all] == [1, 3]


def test_gaps_are_paired_by_seed(bench: ModuleType) -> None:
    unsplit, arm = bench.arms()[0], bench.arms()[2]
    runs = [result(bench, unsplit, s, dev) for s, dev in ((0, 0.80), (1, 0.90))]
    # Seed 2 has no unsplit result and must not count in the gap.
    runs += [result(bench, arm, s, dev) for s, dev in ((0, 0.79), (1, 0.91), (2, 0.50))]
    row = next(r for r in bench.summary(runs) if r["arm"] == arm.key)
    assert row["gap_dev"]["each"] == pytest.approx([-1.0, 1.0])
    assert row["gap_dev"]["mean"] == pytest.approx(0.0)
    assert row["gap_dev"]["sd"] == pytest.approx(2**0.5)
    assert (row["seeds"], row["gap_dev"]["n"]) == (3, 2)
    assert (row["code_ratio"], row["payload_ratio"]) == (96, 48)
    assert "+0.00 ± 1.41 (n=2)" in bench.table([row]).markdown().replace("-0.00", "+0.00")


def test_missing_values_are_shown_as_dashes(bench: ModuleType) -> None:
    unsplit, arm = bench.arms()[0], bench.arms()[2]
    runs = [result(bench, unsplit, 0, 0.8, code_bytes=0, payload_bytes=0, unused=None)]
    runs += [result(bench, arm, 0, 0.79, unused=None)]
    base, row = bench.summary(runs)
    assert row["gap_unused"] is None
    assert row["gap_dev"]["sd"] is None
    assert base["code_ratio"] is None
    assert bench.table([base]).markdown().splitlines()[-1].endswith("| – | – | – | – | – |")


def test_experimental_arms_send_as_much_as_the_recipe(bench: ModuleType) -> None:
    for arm in bench.light():
        ratio = arm.code_ratio(384)
        if "why" in arm.name:
            assert ratio < 96
        elif "64x" in arm.name:
            assert ratio == 64
        elif arm.sentence_vector:
            # 32 values, fp16 up and int8 down, per SST-2 sentence of 13.3 tokens on average.
            tokens = 13.3
            sent = tokens * arm.rank * 8 / 8 + arm.sentence_vector * 24 / 8
            assert 96 <= tokens * 384 * 8 / sent < 100
        else:
            assert 96 <= ratio < 100
    assert len({a.key for a in (*bench.arms(), *bench.light())}) == len(bench.arms()) + len(bench.light())


def test_a_glob_selects_arms_and_always_unsplit(bench: ModuleType) -> None:
    assert bench.select(None) == bench.arms()
    assert [a.name for a in bench.select("recipe r8*")] == ["unsplit", "recipe r8 int4 L-1", "recipe r8 int4 L/2"]
    assert len(bench.select("light*")) == 1 + len(bench.light())


def test_every_arm_is_a_valid_configuration(bench: ModuleType) -> None:
    from farshore.algorithms.split_fine_tuning.config import SplitFineTuning

    for arm in (*bench.arms(), *bench.light()):
        config = SplitFineTuning(**arm.settings())
        assert (config.rank, config.up) == (arm.rank, arm.up) if arm.cut else config.cut == "ffn_svd"
