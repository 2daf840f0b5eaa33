"""Content of the pages, for a home directory without a running server."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from farshore.core.errors import NotFoundError
from farshore.core.transfer import Transfer
from farshore.reports.chart_files import write_charts
from farshore.reports.charts import Chart
from farshore.runs.directory import RunDirectory
from farshore.server.dashboard.formatting import redacted_settings

from .homes import EVIL, Home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "server")


@pytest.fixture
def client(home: Home) -> Iterator[TestClient]:
    with home.client() as client:
        yield client


def ids(text: str) -> list[str]:
    return re.findall(r'<tr id="(?:run|node)-([^"]*)"', text)


def until(client: TestClient, path: str, expected: str) -> str:
    """Request a page until it contains ``expected``."""
    end = time.monotonic() + 20
    while expected not in (text := client.get(path).text):
        assert time.monotonic() < end, expected
        time.sleep(0.05)
    return text


def test_a_home_without_a_run_store_raises_an_error(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(NotFoundError, match=r"run store .* does not exist"):
        Home.dashboard(type("H", (), {"path": tmp_path / "none"})())  # type: ignore[arg-type]
    assert list((tmp_path / "none").iterdir()) == []


def test_empty_pages_suggest_the_next_step(client: TestClient) -> None:
    assert "farshore run METHOD" in client.get("/runs").text
    assert "farshore node join" in client.get("/nodes").text
    assert "A comparison needs at least two runs" in client.get("/compare").text
    assert "server down" in client.get("/nodes").text
    assert client.get("/").headers["location"] == "/runs"


def test_runs_are_listed_newest_first_with_paging_and_filters(client: TestClient, home: Home) -> None:
    for number in range(30):
        home.run(
            f"r{number:02}", "vhl" if number % 3 else "ping", state="failed" if number == 7 else "finished", rounds=1
        )
    first, second = client.get("/runs").text, client.get("/runs?page=2").text
    assert ids(first) == [f"r{n:02}" for n in range(29, 4, -1)]
    assert ids(second) == [f"r{n:02}" for n in range(4, -1, -1)]
    assert "page 2 of 2" in second
    assert ids(client.get("/runs?page=99").text) == ids(second)
    assert ids(client.get("/runs?state=failed").text) == ["r07"]
    assert len(ids(client.get("/runs?q=ping").text)) == 10
    assert ids(client.get("/runs?q=%25").text) == []  # not a wildcard of SQL
    for invalid in ("page=0", "page=-1", "page=x", "page=99999999999", "state=none", "page=²"):
        assert ids(client.get(f"/runs?{invalid}").text) == ids(first), invalid


def test_the_bytes_of_an_ended_run_are_computed_in_the_background(client: TestClient, home: Home) -> None:
    home.run("r1", rounds=4)
    assert "computing" in client.get("/runs").text
    text = until(client, "/runs", "8.80 kB")  # 4 rounds × 2 nodes × 1,100 bytes up
    assert "32.8 kB" in text


def test_a_waiting_run_shows_what_it_waits_for(client: TestClient, home: Home) -> None:
    home.run("r1", state="waiting", reason="waiting for 3 of 5 nodes; connected: a, b", count=5)
    for page in ("/runs", "/runs/r1"):
        assert "waiting for 3 of 5 nodes; connected: a, b" in client.get(page).text


def test_the_page_of_a_run_shows_charts_metrics_and_tables(client: TestClient, home: Home) -> None:
    home.run("r1", rounds=4)
    text = client.get("/runs/r1").text
    for name in ("rounds", "score", "nodes", "flow"):
        assert f'id="chart-{name}"' in text
    assert "40.0 kB" in text  # payload: 4 rounds × 2 nodes × (1,000 + 4,000)
    assert "acc from 0.1 at 1 to 0.4 at 4" in text
    assert "Estimated time on typical links" in text


def test_the_page_of_a_run_shows_the_charts_of_its_method_first(client: TestClient, home: Home) -> None:
    path = home.run("r1")
    points = {"type": "scatter", "mode": "markers", "name": EVIL, "x": [0.0], "y": [1.0]}
    write_charts(path, [Chart("clusters", "Clusters of nodes", "Nodes in two dimensions.", [points], {})])
    text = client.get("/runs/r1").text
    assert text.index("Clusters of nodes") < text.index("Bytes by round")
    assert 'id="chart-method-clusters"' in text
    assert EVIL not in text


def test_the_first_failure_is_shown_first_with_its_traceback(client: TestClient, home: Home) -> None:
    path = home.run("r1", state="failed", reason="node b: ValueError: bad", rounds=1)
    run = RunDirectory(path)
    run.add_failure(
        "b", 0, "ValueError: bad", "Traceback (most recent call last):\n  first <b>line</b>\nValueError: bad"
    )
    run.add_failure("a", 0, "PeerLostError: gone", "Traceback: second")
    text = client.get("/runs/r1").text
    assert "First failure" in text
    assert (
        text.index("Node b") < text.index("first &lt;b&gt;line&lt;/b&gt;") < text.index("Node a") < text.index("second")
    )


def test_a_run_without_its_directory_still_has_a_page(client: TestClient, home: Home) -> None:
    path = home.run("r1", rounds=1)
    path.rename(path.with_name("elsewhere"))
    response = client.get("/runs/r1")
    assert response.status_code == 200
    assert "The communication report is not available" in response.text
    assert client.get("/compare?run=r1&run=r1").status_code == 200


def test_the_comparison_shows_metrics_chart_and_settings(client: TestClient, home: Home) -> None:
    home.run("r1", rounds=2)
    home.run("r2", rounds=4)
    form = client.get("/compare?run=r1").text
    assert re.search(r'value="r1" checked', form)
    text = client.get("/compare?run=r1&run=r2").text
    assert "20.0 kB" in text
    assert 'id="chart-pareto"' in text
    assert "Settings that differ" in text
    assert 'data-live="/live/compare?run=r1&amp;run=r2"' in text
    assert "data-live" not in form


def test_a_comparison_includes_new_data_of_its_runs(client: TestClient, home: Home) -> None:
    runs = [RunDirectory(home.run(name, rounds=2, state="running")) for name in ("r1", "r2")]
    path = "/compare?run=r1&run=r2"
    first = client.get(path).text
    assert first.count("20.0 kB") >= 2
    with runs[1].open_ledger() as ledger:
        ledger.record(Transfer("a", "up", "update", "int8", 3, 0, 0, 4000, 3000, 3100, 0, 1.0))
    assert "20.0 kB" in until(client, path, "23.0 kB")
    runs[1].path.rename(runs[1].path.with_name("elsewhere"))
    home.force(replace(home.store.run("r2"), state="failed"))
    assert "data-live" in until(client, path, "These runs cannot be compared")  # a later update may succeed


def test_bytes_between_nodes_are_shown_if_there_are_any(client: TestClient, home: Home) -> None:
    path = home.run("r1", rounds=1, state="running")
    for page in ("/runs", "/runs/r1"):
        assert not re.search("↔|between nodes", client.get(page).text)
    with RunDirectory(path).open_ledger() as ledger:
        ledger.record(Transfer("a", "peer", "gradient", "raw", 1, 0, 0, 70_000, 70_000, 70_000, 0, time.time() - 2))
    runs, run = until(client, "/runs", "70.0 kB"), until(client, "/runs/r1", "7.00 kB/s")
    assert "↔" in runs
    assert "↔ between nodes" in run


def test_a_thousand_nodes_are_paged(client: TestClient, home: Home) -> None:
    for number in range(1000):
        home.node(f"n{number}", revoked=1.0 if number == 5 else 0.0)
    text = client.get("/nodes").text
    assert ids(text) == [f"n{n}" for n in range(100)]
    assert "1–100 of 1,000 nodes" in text
    assert ids(client.get("/nodes?page=10").text)[-1] == "n999"
    assert ids(client.get("/nodes?state=revoked").text) == ["n5"]
    assert ids(client.get("/nodes?q=n99&sort=up").text) == ["n99", *(f"n{n}" for n in range(990, 1000))]
    assert "the server is not running" in text


def test_long_settings_are_truncated_and_secrets_hidden() -> None:
    shown = redacted_settings(
        {"app": "x" * 5000, "api_key": "s", "hub_token": "s", "max_tokens": 7, "deep": {"password": "s"}}
    )
    assert shown["app"].endswith("(5,000 characters)")
    assert shown["max_tokens"] == 7
    assert [shown["api_key"], shown["hub_token"], shown["deep"]["password"]] == ["(hidden)"] * 3


def test_static_files_are_compressed_and_cached(client: TestClient) -> None:
    response = client.get("/assets/plotly.js")
    assert response.headers["content-encoding"] == "gzip"
    assert len(response.content) > 3_000_000
    again = client.get("/assets/plotly.js", headers={"if-none-match": response.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
