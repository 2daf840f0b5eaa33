"""Event streams send changed parts at the browser's pace; run details and throughput read only new data."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from farshore.core.transfer import Transfer
from farshore.runs.directory import RunDirectory
from farshore.server.dashboard import sse
from farshore.server.dashboard.run_detail import RunDetail, Series
from farshore.server.dashboard.sse import EventStream, Streams
from farshore.server.dashboard.throughput import Throughput

from .homes import Home


class Browser:
    """Receives what an ASGI application sends, unless it is paused."""

    def __init__(self) -> None:
        self.status = 0
        self.bodies: list[bytes] = []
        self.accepting = asyncio.Event()
        self.accepting.set()
        self.closed = asyncio.Event()

    async def send(self, message: Mapping[str, Any]) -> None:
        await self.accepting.wait()
        self.status = message.get("status", self.status)
        self.bodies.append(message.get("body", b""))

    async def receive(self) -> dict[str, str]:
        await self.closed.wait()
        return {"type": "http.disconnect"}

    def parts(self) -> list[dict[str, Any]]:
        events = [body.decode() for body in self.bodies if body.startswith(b"event: parts\ndata: ")]
        return [json.loads(text.removeprefix("event: parts\ndata: ")) for text in events]


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "_INTERVAL", 0.01)


def start_stream(streams: Streams, browser: Browser, render: Any) -> asyncio.Task[None]:
    return asyncio.create_task(EventStream(streams, render)({"type": "http"}, browser.receive, browser.send))  # type: ignore[arg-type]


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


def test_only_changed_parts_are_sent() -> None:
    async def scenario() -> None:
        parts = {"a": 1, "b": "<p>\n\nx"}
        calls = 0

        async def render() -> Mapping[str, Any]:
            nonlocal calls
            calls += 1
            return dict(parts)

        browser, streams = Browser(), Streams()
        task = start_stream(streams, browser, render)
        await until(lambda: calls > 3)
        parts["a"] = 2
        await until(lambda: len(browser.parts()) == 2)
        assert browser.parts() == [{"a": 1, "b": "<p>\n\nx"}, {"a": 2}]
        streams.end()
        await asyncio.wait_for(task, 5)
        assert browser.bodies[-1] == b""

    asyncio.run(scenario())


def test_a_slow_browser_skips_states_and_no_events_queue_up() -> None:
    async def scenario() -> None:
        count = 0

        async def render() -> Mapping[str, Any]:
            nonlocal count
            count += 1
            return {"a": count}

        browser, streams = Browser(), Streams()
        task = start_stream(streams, browser, render)
        await until(lambda: browser.parts())
        browser.accepting.clear()
        await asyncio.sleep(0.3)
        paused_at = count
        await asyncio.sleep(0.3)
        assert count == paused_at  # not rendered again before the last event was accepted
        browser.closed.set()
        await asyncio.wait_for(task, 5)

    asyncio.run(scenario())


def test_a_browser_that_accepts_no_data_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "_SEND_TIMEOUT", 0.05)

    async def scenario() -> None:
        browser, streams = Browser(), Streams(limit=1)

        async def render() -> Mapping[str, Any]:
            browser.accepting.clear()
            return {"a": time.monotonic()}

        await asyncio.wait_for(start_stream(streams, browser, render), 5)
        assert not streams.full

    asyncio.run(scenario())


def test_streams_beyond_the_limit_are_rejected() -> None:
    async def scenario() -> None:
        async def render() -> Mapping[str, Any]:
            return {}

        streams, browsers = Streams(limit=3), [Browser() for _ in range(4)]
        tasks = [start_stream(streams, browser, render) for browser in browsers]
        await until(lambda: all(browser.status for browser in browsers))
        assert [browser.status for browser in browsers] == [200, 200, 200, 503]
        browsers[0].closed.set()
        await tasks[0]
        assert not streams.full
        streams.end()
        await asyncio.gather(*tasks)

    asyncio.run(scenario())


def test_the_stream_of_a_page_sends_exactly_the_parts_of_the_page(tmp_path: Path) -> None:
    home = Home(tmp_path / "server")
    home.run("r1")
    home.run("r2")
    with_charts = "/runs/r1", "/compare?run=r1&run=r2"
    with home.client() as client:
        pages = {path: client.get(path).text for path in ("/runs", "/nodes", *with_charts)}

    async def scenario(path: str) -> dict[str, Any]:
        dashboard, browser = home.dashboard(), Browser()
        base, _, query = path.partition("?")
        headers = [(b"host", b"127.0.0.1")]
        scope = {"type": "http", "method": "GET", "path": f"/live{base}"}
        scope |= {"query_string": query.encode(), "headers": headers}
        task = asyncio.create_task(dashboard.application(scope, browser.receive, browser.send))  # type: ignore[arg-type]
        await until(lambda: browser.parts())
        dashboard.streams.end()
        await task
        return browser.parts()[0]

    for path, text in pages.items():
        parts = asyncio.run(scenario(path))
        assert {name for name in parts if name != "charts"} == {
            piece.partition('"')[0] for piece in text.split('id="')[1:] if piece.startswith("part-")
        }
        assert ("charts" in parts) == (path in with_charts)


# ---- run details and throughput


def test_run_details_follow_a_run(tmp_path: Path) -> None:
    home = Home(tmp_path / "server")
    path = home.run("r1", state="running", rounds=2)
    detail, run = RunDetail(path), RunDirectory(path)
    first = detail.refresh("running")
    assert first.report is not None
    assert first.report.communication.once.payload_bytes == 2 * 2 * 5000
    assert detail.refresh("running") is first  # not read again within a second
    metrics = run.open_metrics()
    metrics.write(3, {"acc": 0.9, "odd": float("nan")})
    with run.open_ledger() as ledger:
        ledger.record(Transfer("a", "up", "update", "int8", 3, 0, 0, 4000, 1000, 1100, 0, 1.0))
    run.add_failure("a", 0, "it broke", "")
    second = detail.refresh("failed")  # a new state is read at once
    assert second.report is not None
    assert second.report.communication.once.payload_bytes == 2 * 2 * 5000 + 1000
    assert second.metrics is not None
    assert list(second.metrics) == ["acc"]
    assert second.metrics["acc"][-1] == (3, 0.9)
    assert [failure["error"] for failure in second.failures] == ["it broke"]


def test_a_long_metric_is_downsampled_and_keeps_its_ends() -> None:
    series = Series()
    for step in range(10_000):
        series.add(step, float(step))
    drawn = series.drawn()
    assert len(drawn) <= 602
    assert (drawn[0], drawn[-1]) == ((0, 0.0), (9999, 9999.0))
    assert [step for step, _ in drawn] == sorted({step for step, _ in drawn})
    series.add(5000, -1.0)  # a restart goes back
    assert series.drawn()[-1] == (5000, -1.0)
    assert all(step <= 5000 for step, _ in series.drawn())


def test_rates_are_averaged_over_the_last_seconds(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "r", {"id": "r", "workload": "x", "config": {}, "seed": 0, "nodes": []})
    throughput, now = Throughput(run.path), 1_000_000.0

    def transfer(node: str, direction: str, size: int, age: float) -> Transfer:
        return Transfer(node, direction, "k", "raw", 1, 0, 0, size, size, size, 0, now - age)  # type: ignore[arg-type]

    with run.open_ledger() as ledger:
        ledger.record(transfer("a", "up", 7_000, 3600))
        for age in range(2, 11):
            ledger.record(transfer("a", "up", 1_000, age))
        ledger.record(transfer("b", "down", 5_000, 5))
    assert throughput.update(now)
    assert throughput.bytes == {"up": 16_000, "down": 5_000, "peer": 0}
    assert throughput.rates(now) == {("a", "up"): 900.0, ("b", "down"): 500.0}
    assert not throughput.update(now + 30)
    assert throughput.rates(now + 30) == {}
    assert throughput.bytes == {"up": 16_000, "down": 5_000, "peer": 0}
