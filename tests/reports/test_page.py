"""The HTML page is self-contained, escapes names, and shows the run's metrics."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from farshore.core.errors import MissingExtraError, StorageError
from farshore.reports.page import write_page
from farshore.reports.run_report import read_report

from .runs import federated

EVIL = "</script><script>alert(1)</script>"


@pytest.fixture
def plotly_stub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace plotly.js, which contains tags and URLs itself."""
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "/* plotly */")


def written(folder: Path, **info: object) -> str:
    write_page(read_report(federated(folder / "run", **info)), folder / "page.html")
    return (folder / "page.html").read_text()


@pytest.mark.usefixtures("plotly_stub")
def test_the_page_loads_nothing_from_other_hosts(tmp_path: Path) -> None:
    text = written(tmp_path)
    assert "/* plotly */" in text
    assert not re.search(r"""(src|href|action)\s*=|@import|url\(|https?://""", text)


@pytest.mark.usefixtures("plotly_stub")
def test_names_of_runs_methods_and_settings_are_escaped(tmp_path: Path) -> None:
    text = written(tmp_path, id=EVIL, workload=EVIL, config={"name": EVIL, EVIL: 1})
    assert EVIL not in text
    assert text.count("<script") == 3


@pytest.mark.usefixtures("plotly_stub")
def test_charts_hold_the_figures_of_the_run(tmp_path: Path) -> None:
    text = written(tmp_path)
    data = json.loads(re.search(r'id="charts">(.*?)</script>', text, re.S)[1])  # type: ignore[index]
    assert [chart["name"] for chart in data] == ["rounds", "score", "nodes", "flow"]
    bars = {trace["name"]: trace["y"] for trace in data[0]["traces"]}
    assert bars == {"model": [12_000] * 4, "update": [3000] * 4}
    assert data[1]["traces"][0]["x"] == [15_000, 30_000, 45_000, 60_000]
    assert data[2]["traces"][0]["z"] == [[5200] * 4] * 3
    flow = data[3]["traces"][0]
    labels = flow["node"]["label"]
    flows = {
        (labels[a], labels[b]): v
        for a, b, v in zip(*(flow["link"][name] for name in ("source", "target", "value")), strict=True)
    }
    assert flows["server", "model ↓"] == flows["model ↓", "n1"] * 3 == 48_000
    assert flows["update ↑", "server"] == 12_000
    assert "60.0 kB" in text


def test_plotly_js_is_embedded(tmp_path: Path) -> None:
    assert len(written(tmp_path)) > 1_000_000


def test_an_unwritable_path_and_a_missing_package_raise_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = read_report(federated(tmp_path / "run"))
    with pytest.raises(StorageError):
        write_page(report, tmp_path / "none" / "page.html")
    monkeypatch.setitem(__import__("sys").modules, "plotly.offline", None)
    with pytest.raises(MissingExtraError, match=r"\[reports\]"):
        write_page(report, tmp_path / "page.html")
