"""Comparison of runs: best values, settings that differ, and the payload to reach a common score."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from farshore.core.errors import ConfigError
from farshore.reports.compare import Comparison, compare_runs, comparison_tables, score_over_bytes
from farshore.reports.page import write_comparison
from farshore.reports.run_report import read_report

from .runs import federated


@pytest.fixture
def comparison(tmp_path: Path) -> Comparison:
    long = federated(tmp_path / "long", rounds=8, nodes=2, config={"lr": 0.1, "virtual": {"enabled": True, "m": 2}})
    short = federated(tmp_path / "short", rounds=5, nodes=4, config={"lr": 0.1, "virtual": {"enabled": False}})
    return compare_runs([read_report(long), read_report(short)])


def test_figures_that_differ_mark_the_best_run(comparison: Comparison) -> None:
    rows = {row.name: row for row in comparison.metrics}
    assert rows["payload, each message once"].values == (8 * 2 * 5000, 5 * 4 * 5000)
    assert rows["payload, each message once"].best == 0
    assert rows["best acc"].values == (0.8, 0.5)
    assert rows["best acc"].best == 0
    assert (rows["seed"].best, rows["seed"].differs) == (None, False)
    assert comparison.target == 0.5
    assert rows["rounds to 0.5"].values == (5, 5)
    assert rows["payload to 0.5"].values == (50_000, 100_000)


def test_only_settings_that_differ_are_listed(comparison: Comparison) -> None:
    assert {row.name: row.values for row in comparison.settings} == {
        "virtual.enabled": (True, False),
        "virtual.m": (2, None),
    }


def test_tables_json_page_and_chart_show_the_same_metrics(
    comparison: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "/* plotly */")
    console = Console(width=160, color_system=None)
    with console.capture() as capture:
        for table in comparison_tables(comparison):
            console.print(table)
    assert "80.0 kB" in capture.get()
    metrics = json.loads(json.dumps(comparison.as_dict()))["metrics"]
    assert metrics["payload to 0.5"] == {"long": 50_000, "short": 100_000}
    write_comparison(comparison, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert '<td class="best">80.0 kB' in text
    chart = score_over_bytes(comparison)
    assert chart is not None
    assert chart.traces[1]["y"] == [n / 10 for n in range(1, 9)]


def test_runs_with_equal_ids_get_unique_names_and_runs_without_a_score_are_compared(tmp_path: Path) -> None:
    runs = [federated(tmp_path / "a", rounds=1), federated(tmp_path / "b", rounds=2, id="a")]
    (runs[0].path / "metrics.jsonl").unlink()
    comparison = compare_runs([read_report(run) for run in runs])
    assert comparison.names == ("a (1)", "a (2)")
    assert comparison.target is None
    assert score_over_bytes(comparison) is None


def test_a_comparison_of_one_run_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs at least two runs"):
        compare_runs([read_report(federated(tmp_path / "a"))])
