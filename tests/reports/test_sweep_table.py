"""Tables and pictures of sweeps."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from farshore.core.errors import ConfigError
from farshore.reports.sweep_plots import draw_sweep
from farshore.reports.sweep_table import SweepRow, SweepTable


def table(*rows: SweepRow, keys: tuple[str, ...] = ("lr",), **more: Any) -> SweepTable:
    return SweepTable("toy", keys, rows, **more)


def row(lr: float, seed: int, acc: float, **more: Any) -> SweepRow:
    return SweepRow({"lr": lr}, seed, {"acc": acc, "note": "x"}, **more)


def test_cells_have_mean_and_sample_deviation_over_their_seeds() -> None:
    made = table(row(0.1, 0, 0.2), row(0.1, 1, 0.4), row(0.01, 0, 0.9), SweepRow({"lr": 0.01}, 1, {}, "boom"))
    first, second = made.cells
    assert first.mean == {"acc": pytest.approx(0.3)}
    assert first.sd == {"acc": pytest.approx(math.sqrt(0.02))}
    assert (second.mean, second.sd, second.seeds, second.failed) == ({"acc": 0.9}, {}, 2, 1)
    assert made.ranked()[0] is second


@pytest.mark.parametrize(
    ("name", "best", "higher"),
    [("acc", "auto", True), ("loss", "auto", False), ("val_loss", "auto", False), ("loss", "max", True)],
)
def test_lower_is_better_for_losses_unless_told_otherwise(name: str, best: Any, higher: bool) -> None:
    made = table(*(SweepRow({"lr": lr}, 0, {name: lr}) for lr in (1.0, 2.0)), metric=name, best=best)
    assert made.higher_is_better == higher
    assert made.ranked()[0].cell == {"lr": 2.0 if higher else 1.0}


def test_cells_without_a_finite_value_are_not_ranked_and_larger_budgets_come_first() -> None:
    rows = [row(1, 0, 0.9, budget=1), row(2, 0, 0.8, budget=1), row(2, 0, 0.5, budget=2), row(3, 0, math.nan, budget=1)]
    assert [cell.cell["lr"] for cell in table(*rows).ranked()] == [2, 1]


def test_a_metric_that_is_not_there_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'acc'"):
        _ = table(row(1, 0, 0.5), metric="accu").compared


def test_a_table_survives_json_and_csv() -> None:
    import csv
    import io
    import json

    made = table(row(0.1, 0, 0.25, node="a", seconds=1.5), SweepRow({"lr": [1, 2]}, 1, {}, 'a "b", c'))
    assert tuple(SweepTable.from_dict(json.loads(json.dumps(made.as_dict()))).rows) == made.rows
    header, first, second = csv.reader(io.StringIO(made.csv()))
    assert header == ["lr", "seed", "acc", "note", "error", "node", "seconds"]
    assert first == ["0.1", "0", "0.25", "x", "", "a", "1.5"]
    assert second == ["[1, 2]", "1", "", "", 'a "b", c', "", "0.0"]


@pytest.mark.parametrize("keys", [("a",), ("a", "b"), ("a", "b", "c"), ()])
@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_picture_is_drawn_for_any_number_of_settings(keys: tuple[str, ...], suffix: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    values = {"a": (0.001, 0.1, 1.0), "b": ("x", "y"), "c": (True, False)}
    cells: list[dict[str, Any]] = [{}]
    for key in keys:
        cells = [{**cell, key: value} for cell in cells for value in values[key]]
    rows = [SweepRow(cell, seed, {"acc": 0.1 * n + seed}) for n, cell in enumerate(cells) for seed in (0, 1)]
    path = tmp_path / f"p.{suffix}"
    draw_sweep(table(*rows, keys=keys), path)
    assert path.stat().st_size > 1000
    if suffix == "svg" and len(keys) == 2:
        text = path.read_text()
        assert text.count('<g id="text_') >= 6


def test_a_sweep_without_numbers_has_no_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(ConfigError, match="no item"):
        draw_sweep(table(SweepRow({"lr": 1}, 0, {"text": "x"})), tmp_path / "p.png")


def test_constant_metrics_and_those_named_like_a_setting_are_not_compared() -> None:
    rows = [SweepRow({"lr": lr}, 0, {"lr": lr / 2, "size": 5, "gain": lr}) for lr in (1.0, 2.0)]
    made = table(*rows)
    assert made.varying == ["gain"]
    assert made.compared == "gain"
    assert made.csv().splitlines()[0] == "lr,seed,metric.lr,size,gain,error,node,seconds"
