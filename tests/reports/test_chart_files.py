"""Charts of a method: written into the run directory, shown by reports, damaged ones left out, drawn as an image."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from farshore.core.errors import MissingExtraError, StorageError
from farshore.reports.chart_files import draw_charts, read_charts, write_charts
from farshore.reports.charts import Chart, charts
from farshore.reports.page import write_page
from farshore.reports.run_report import read_report

from .runs import federated

POINTS = {"type": "scatter", "mode": "markers", "name": "cluster 0", "x": [0.0, 1.0], "y": [1.0, 2.0]}
LINE = {"type": "scatter", "mode": "lines", "name": "loss", "x": [1, 2, 3], "y": [3.0, None, 1.0]}
CELLS = {"type": "heatmap", "x": ["class 0", "class 1"], "y": ["cluster 0"], "z": [[3, 4]]}
LAYOUT = {"xaxis": {"title": {"text": "epoch"}}, "yaxis": {"title": {"text": "loss"}, "type": "log"}}


def made(name: str = "clusters", *traces: dict[str, Any], title: str = "Clusters") -> Chart:
    return Chart(name, title, "What it shows.", list(traces) or [POINTS], LAYOUT)


def test_charts_are_read_in_the_order_in_which_they_were_written(tmp_path: Path) -> None:
    write_charts(tmp_path, [made("z-first"), made("a-second", LINE, POINTS)])
    first, second = read_charts(tmp_path)
    assert (first.name, second.name) == ("method-z-first", "method-a-second")
    assert second == Chart("method-a-second", "Clusters", "What it shows.", [LINE, POINTS], LAYOUT)
    assert read_charts(tmp_path / "elsewhere") == ()


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"title": "x"}', '{"title": "x", "description": "", "traces": {}, "layout": {}}', "x" * (9 << 20)],
    ids=["empty", "truncated", "list", "incomplete", "mistyped", "large"],
)
def test_a_damaged_chart_is_left_out(tmp_path: Path, content: str) -> None:
    write_charts(tmp_path, [made()])
    (tmp_path / "charts" / "05-broken.json").write_text(content)
    assert [chart.name for chart in read_charts(tmp_path)] == ["method-clusters"]


def test_a_file_with_another_name_than_a_charts_is_left_out(tmp_path: Path) -> None:
    write_charts(tmp_path, [made()])
    source = tmp_path / "charts" / "00-clusters.json"
    for name in ("00-<b>.json", "00-.json", "00-Upper.json", "clusters.json"):
        (tmp_path / "charts" / name).write_bytes(source.read_bytes())
    assert len(read_charts(tmp_path)) == 1


def test_the_report_shows_them_before_those_of_the_traffic_with_names_escaped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "/* plotly */")
    run = federated(tmp_path / "run")
    evil = "</script><script>alert(1)</script>"
    write_charts(run.path, [made("clusters", {**POINTS, "name": evil}, title=evil)])
    report = read_report(run)
    assert [chart.name for chart in charts(report)][:2] == ["method-clusters", "rounds"]
    write_page(report, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert evil not in text
    data = json.loads(re.search(r'id="charts">(.*?)</script>', text, re.S)[1])  # type: ignore[index]
    assert data[0]["traces"][0]["name"] == "&lt;/script>&lt;script>alert(1)&lt;/script>"
    assert 'id="chart-method-clusters"' in text


def test_charts_are_drawn_as_an_image(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for count in (1, 3):
        path = tmp_path / f"{count}.png"
        draw_charts([made("a"), made("b", LINE), made("c", CELLS)][:count], path)
        assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(StorageError, match="cannot write"):
        draw_charts([made()], tmp_path / "missing" / "x.png")


def test_a_missing_matplotlib_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match="matplotlib"):
        draw_charts([made()], tmp_path / "x.png")
