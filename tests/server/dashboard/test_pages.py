"""What the pages tell, of a home without a running server."""

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
from farshore.runs.directory import RunDirectory
from farshore.server.dashboard.formatting import settings

from .homes import Home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "server")


@pytest.fixture
def client(home: Home) -> Iterator[TestClient]:
    with home.client() as client:
        yield client


def ids(text: str) -> list[str]:
    return re.findall(r'<tr id="(?:run|node)-([^"]*)"', text)


def until(client: TestClient, address: str, words: str) -> str:
    """A page, asked for until it says so."""
    end = time.monotonic() + 20
    while words not in (text := client.get(address).text):
        assert time.monotonic() < end, words
        time.sleep(0.05)
    return text


def test_a_home_without_a_store_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(NotFoundError, match="no run store"):
        Home.dashboard(type("H", (), {"path": tmp_path / "none"})())  # type: ignore[arg-type]
    assert list((tmp_path / "none").iterdir()) == []


def test_empty_pages_say_what_to_do_next(client: TestClient) -> None:
    assert "farshore run METHOD" in client.get("/runs").text
    assert "farshore node join" in client.get("/nodes").text
    assert "Two runs make a comparison" in client.get("/compare").text
    assert "server down" in client.get("/nodes").text
    assert client.get("/").headers["location"] == "/runs"


def test_runs_come_newest_first_in_pages_and_filtered(client: TestClient, home: Home) -> None:
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
    assert ids(client.get("/runs?q=%25").text) == []  # no wildcard of the database
    for odd in ("page=0", "page=-1", "page=x", "page=99999999999", "state=none", "page=²"):
        assert ids(client.get(f"/runs?{odd}").text) == ids(first), odd


def test_the_bytes_of_an_ended_run_are_summed_up_beside(client: TestClient, home: Home) -> None:
    home.run("r1", rounds=4)
    assert "summing up" in client.get("/runs").text
    text = until(client, "/runs", "8.80 kB")  # 4 rounds × 2 nodes × 1,100 bytes up
    assert "32.8 kB" in text


def test_a_waiting_run_tells_what_it_waits_for(client: TestClient, home: Home) -> None:
    home.run("r1", state="waiting", reason="waiting for 3 of 5 nodes; connected: a, b", count=5)
    for page in ("/runs", "/runs/r1"):
        assert "waiting for 3 of 5 nodes; connected: a, b" in client.get(page).text


def test_one_run_in_depth(client: TestClient, home: Home) -> None:
    home.run("r1", rounds=4)
    text = client.get("/runs/r1").text
    for name in ("rounds", "score", "nodes", "flow"):
        assert f'id="chart-{name}"' in text
    assert "40.0 kB" in text  # payload: 4 rounds × 2 nodes × (1,000 + 4,000)
    assert "acc from 0.1 at 1 to 0.4 at 4" in text
    assert "On links that people have" in text


def test_the_first_program_that_failed_comes_first_with_its_traceback(client: TestClient, home: Home) -> None:
    path = home.run("r1", state="failed", reason="node b: ValueError: bad", rounds=1)
    run = RunDirectory(path)
    run.add_failure(
        "b", 0, "ValueError: bad", "Traceback (most recent call last):\n  first <b>line</b>\nValueError: bad"
    )
    run.add_failure("a", 0, "PeerLostError: gone", "Traceback: second")
    text = client.get("/runs/r1").text
    assert "First to fail" in text
    assert (
        text.index("Node b") < text.index("first &lt;b&gt;line&lt;/b&gt;") < text.index("Node a") < text.index("second")
    )


def test_a_run_whose_directory_is_gone_is_still_told_of(client: TestClient, home: Home) -> None:
    path = home.run("r1", rounds=1)
    path.rename(path.with_name("elsewhere"))
    answer = client.get("/runs/r1")
    assert answer.status_code == 200
    assert "Nothing can be told of its communication" in answer.text
    assert client.get("/compare?run=r1&run=r1").status_code == 200


def test_runs_side_by_side(client: TestClient, home: Home) -> None:
    home.run("r1", rounds=2)
    home.run("r2", rounds=4)
    choice = client.get("/compare?run=r1").text
    assert re.search(r'value="r1" checked', choice)
    text = client.get("/compare?run=r1&run=r2").text
    assert "20.0 kB" in text
    assert 'id="chart-pareto"' in text
    assert "Settings that differ" in text
    assert 'data-live="/live/compare?run=r1&amp;run=r2"' in text
    assert "data-live" not in choice


def test_side_by_side_goes_on_with_what_the_runs_gain(client: TestClient, home: Home) -> None:
    runs = [RunDirectory(home.run(name, rounds=2, state="running")) for name in ("r1", "r2")]
    address = "/compare?run=r1&run=r2"
    first = client.get(address).text
    assert first.count("20.0 kB") >= 2
    with runs[1].open_ledger() as ledger:
        ledger.record(Transfer("a", "up", "update", "int8", 3, 0, 0, 4000, 3000, 3100, 0, 1.0))
    assert "20.0 kB" in until(client, address, "23.0 kB")
    runs[1].path.rename(runs[1].path.with_name("elsewhere"))
    home.force(replace(home.store.run("r2"), state="failed"))
    assert "data-live" in until(client, address, "They cannot be compared")  # another look may find it again


def test_bytes_between_nodes_are_shown_where_there_are_any(client: TestClient, home: Home) -> None:
    path = home.run("r1", rounds=1, state="running")
    for page in ("/runs", "/runs/r1"):
        assert not re.search("↔|between nodes", client.get(page).text)
    with RunDirectory(path).open_ledger() as ledger:
        ledger.record(Transfer("a", "peer", "gradient", "raw", 1, 0, 0, 70_000, 70_000, 70_000, 0, time.time() - 2))
    runs, run = until(client, "/runs", "70.0 kB"), until(client, "/runs/r1", "7.00 kB/s")
    assert "↔" in runs
    assert "↔ between nodes" in run


def test_a_thousand_nodes_come_in_pages(client: TestClient, home: Home) -> None:
    for number in range(1000):
        home.node(f"n{number}", revoked=1.0 if number == 5 else 0.0)
    text = client.get("/nodes").text
    assert ids(text) == [f"n{n}" for n in range(100)]
    assert "1–100 of 1,000 nodes" in text
    assert ids(client.get("/nodes?page=10").text)[-1] == "n999"
    assert ids(client.get("/nodes?state=revoked").text) == ["n5"]
    assert ids(client.get("/nodes?q=n99&sort=up").text) == ["n99", *(f"n{n}" for n in range(990, 1000))]
    assert "the server is not running" in text


def test_settings_are_cut_and_secrets_hidden() -> None:
    shown = settings({"app": "x" * 5000, "api_key": "s", "hub_token": "s", "max_tokens": 7, "deep": {"password": "s"}})
    assert shown["app"].endswith("(5,000 characters)")
    assert shown["max_tokens"] == 7
    assert [shown["api_key"], shown["hub_token"], shown["deep"]["password"]] == ["(hidden)"] * 3


def test_files_come_packed_and_once(client: TestClient) -> None:
    answer = client.get("/assets/plotly.js")
    assert answer.headers["content-encoding"] == "gzip"
    assert len(answer.content) > 3_000_000
    again = client.get("/assets/plotly.js", headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
