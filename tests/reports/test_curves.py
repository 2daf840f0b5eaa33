"""Score curves are read from a run's files; arm statistics summarize them over seeds."""

from __future__ import annotations

from pathlib import Path

import pytest

from farshore.core.errors import DataError
from farshore.core.transfer import Transfer
from farshore.reports.arms import averaged, compare, percent, sparkline
from farshore.reports.curves import Curve, read_curve, speed_up
from farshore.reports.plots import draw_comparison
from farshore.runs.directory import RunDirectory

INFO = {"id": "r1", "workload": "vhl", "config": {}, "seed": 0, "nodes": []}


def written(folder: Path, scores: dict[int, float], rows: list[tuple[int, str, int, int]]) -> RunDirectory:
    """Write a run with ``scores`` by round and ``rows`` of round, kind, payload bytes and attempt."""
    run = RunDirectory.create(folder, INFO)
    metrics = run.open_metrics()
    for number, score in scores.items():
        metrics.write(number, {"acc": score, "loss": 1.0})
    metrics.close()
    with run.open_ledger() as ledger:
        for number, kind, payload, attempt in rows:
            ledger.record(Transfer("c", "up", kind, "raw", number, 0, 0, payload, payload, payload, attempt, 1.0))
    return run


def test_each_score_has_its_cumulative_payload(tmp_path: Path) -> None:
    rows = [(0, "virtual", 7, 0), (1, "update", 10, 0), (2, "update", 20, 0), (3, "update", 30, 0), (1, "ack", 99, 0)]
    curve = read_curve(written(tmp_path / "r", {2: 0.5, 3: 0.75}, rows), "acc")
    assert curve == Curve((2, 3), (0.5, 0.75), (37, 67))
    assert (curve.best, curve.reaches(0.6), curve.reaches(0.76)) == (0.75, (3, 67), None)


def test_a_round_repeated_after_a_restart_counts_once_with_its_last_score(tmp_path: Path) -> None:
    run = written(tmp_path / "r", {1: 0.5, 2: 0.1}, [(1, "update", 10, 0), (2, "update", 20, 0), (2, "update", 20, 1)])
    metrics = run.open_metrics()
    metrics.write(2, {"acc": 0.7})
    metrics.close()
    assert read_curve(run, "acc") == Curve((1, 2), (0.5, 0.7), (10, 30))


def test_the_error_names_the_missing_score(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'accuracy'"):
        read_curve(written(tmp_path / "r", {1: 0.5}, []), "accuracy")


def curve_of(*scores: float) -> Curve:
    return Curve(tuple(range(1, len(scores) + 1)), scores, tuple(100 * i for i in range(1, len(scores) + 1)))


def test_each_seed_has_its_own_target() -> None:
    """Seed 0's baseline reaches 0.799 at best, so its target is 0.79; seed 1's 0.9."""
    base = {0: curve_of(0.5, 0.799, 0.7), 1: curve_of(0.9, 0.2, 0.3)}
    other = {0: curve_of(0.2, 0.78, 0.79), 1: curve_of(0.89, 0.89, 0.899)}
    first, second = compare({"base": base, "other": other}, "base")
    assert (first.reached, first.rounds_to, first.payload_to) == (2, 1.5, 150)
    assert (second.reached, second.rounds_to, second.payload_to) == (1, 3, 300)
    assert first.best.mean == pytest.approx(0.8495)
    assert first.best.sd == pytest.approx(0.0714, abs=1e-4)
    assert second.payload == 300


def test_speed_up_compares_with_the_baseline_of_the_same_seed() -> None:
    base = {0: curve_of(0.1, 0.2, 0.3, 0.8), 1: curve_of(0.1, 0.8), 2: curve_of(0.1, 0.9)}
    other = {0: curve_of(0.8, 0.1), 1: curve_of(0.8, 0.1), 2: curve_of(0.1, 0.1)}
    first, second = compare({"base": base, "other": other}, "base")
    assert (first.speed_up, second.speed_up) == (1.0, 3.0)  # 4 / 1 and 2 / 1 rounds; seed 2 never reached its target
    assert compare({"a": base})[0].speed_up is None


def test_speed_up_is_none_if_a_run_missed_the_target() -> None:
    assert speed_up(6, 2) == 3.0
    assert speed_up(None, 2) is None
    assert speed_up(6, None) is None


def test_without_a_baseline_there_is_no_target() -> None:
    (arm,) = compare({"a": {0: curve_of(0.5)}})
    assert (arm.reached, arm.rounds_to, arm.best.sd) == (None, None, None)


def test_last_is_the_mean_of_the_last_ten_scores() -> None:
    assert curve_of(*([0.0] * 5 + [1.0] * 10)).last() == 1.0
    assert curve_of(0.5, 1.0).last() == 0.75


def test_percent_rounds_down_despite_floating_point_error() -> None:
    assert percent(0.29) == 0.29  # 100 * 0.29 is 28.999…
    assert percent(0.2999) == 0.29


def test_seeds_are_averaged_over_rounds_that_all_have_scored() -> None:
    assert averaged({0: curve_of(0.0, 0.5, 1.0), 1: curve_of(1.0, 0.5)}) == ([1, 2], [0.5, 0.5])


def test_sparkline_blocks_grow_with_scores() -> None:
    assert sparkline([0.0, 0.5, 1.0], 0.0, 1.0) == "▁▅█"
    assert sparkline([0.5] * 100, 0.0, 0.0, width=4) == "▅▅▅▅"


def test_the_plot_is_written(tmp_path: Path) -> None:
    path = tmp_path / "p.png"
    draw_comparison(
        {"a": {0: curve_of(0.1, 0.9), 1: curve_of(0.2, 0.8)}, "b": {0: curve_of(0.5)}}, path, title="t", score="acc"
    )
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_curve_of_one_round_is_drawn_as_a_point(tmp_path: Path) -> None:
    def pixels(score: float) -> bytes:
        path = tmp_path / f"{score}.png"
        draw_comparison({"a": {0: curve_of(0.2, 0.8)}, "b": {0: curve_of(score)}}, path, title="t", score="acc")
        return path.read_bytes()

    assert pixels(0.4) != pixels(0.6)
