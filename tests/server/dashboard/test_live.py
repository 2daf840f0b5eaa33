"""Streams: what has changed, no faster than it is taken, for so many at a time; looks that read only what is new."""

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
from farshore.server.dashboard.sse import Live, Streams
from farshore.server.dashboard.throughput import Throughput

from .homes import Home


class Browser:
    """Takes what an ASGI application sends, when it is told to."""

    def __init__(self) -> None:
        self.status = 0
        self.bodies: list[bytes] = []
        self.may_take = asyncio.Event()
        self.may_take.set()
        self.left = asyncio.Event()

    async def send(self, message: Mapping[str, Any]) -> None:
        await self.may_take.wait()
        self.status = message.get("status", self.status)
        self.bodies.append(message.get("body", b""))

    async def receive(self) -> dict[str, str]:
        await self.left.wait()
        return {"type": "http.disconnect"}

    def parts(self) -> list[dict[str, Any]]:
        events = [body.decode() for body in self.bodies if body.startswith(b"event: parts\ndata: ")]
        return [json.loads(text.removeprefix("event: parts\ndata: ")) for text in events]


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "_LOOK", 0.01)


def run_live(streams: Streams, browser: Browser, look: Any) -> asyncio.Task[None]:
    return asyncio.create_task(Live(streams, look)({"type": "http"}, browser.receive, browser.send))  # type: ignore[arg-type]


async def until(what: Any) -> None:
    async with asyncio.timeout(20):
        while not what():
            await asyncio.sleep(0.005)


def test_only_what_has_changed_is_sent() -> None:
    async def scene() -> None:
        now = {"a": 1, "b": "<p>\n\nx"}
        looks = 0

        async def look() -> Mapping[str, Any]:
            nonlocal looks
            looks += 1
            return dict(now)

        browser, streams = Browser(), Streams()
        task = run_live(streams, browser, look)
        await until(lambda: looks > 3)
        now["a"] = 2
        await until(lambda: len(browser.parts()) == 2)
        assert browser.parts() == [{"a": 1, "b": "<p>\n\nx"}, {"a": 2}]
        streams.end()
        await asyncio.wait_for(task, 5)
        assert browser.bodies[-1] == b""

    asyncio.run(scene())


def test_a_slow_browser_skips_and_nothing_queues_up() -> None:
    async def scene() -> None:
        count = 0

        async def look() -> Mapping[str, Any]:
            nonlocal count
            count += 1
            return {"a": count}

        browser, streams = Browser(), Streams()
        task = run_live(streams, browser, look)
        await until(lambda: browser.parts())
        browser.may_take.clear()
        await asyncio.sleep(0.3)
        stuck = count
        await asyncio.sleep(0.3)
        assert count == stuck  # not looked at again before the last event was taken
        browser.left.set()
        await asyncio.wait_for(task, 5)

    asyncio.run(scene())


def test_a_browser_that_takes_nothing_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "_TAKE", 0.05)

    async def scene() -> None:
        browser, streams = Browser(), Streams(most=1)

        async def look() -> Mapping[str, Any]:
            browser.may_take.clear()
            return {"a": time.monotonic()}

        await asyncio.wait_for(run_live(streams, browser, look), 5)
        assert not streams.full

    asyncio.run(scene())


def test_so_many_streams_and_no_more() -> None:
    async def scene() -> None:
        async def look() -> Mapping[str, Any]:
            return {}

        streams, browsers = Streams(most=3), [Browser() for _ in range(4)]
        tasks = [run_live(streams, browser, look) for browser in browsers]
        await until(lambda: all(browser.status for browser in browsers))
        assert [browser.status for browser in browsers] == [200, 200, 200, 503]
        browsers[0].left.set()
        await tasks[0]
        assert not streams.full
        streams.end()
        await asyncio.gather(*tasks)

    asyncio.run(scene())


def test_the_stream_of_a_page_holds_the_parts_that_the_page_has(tmp_path: Path) -> None:
    home = Home(tmp_path / "server")
    home.run("r1")
    home.run("r2")
    drawn = "/runs/r1", "/compare?run=r1&run=r2"
    with home.client() as client:
        pages = {path: client.get(path).text for path in ("/runs", "/nodes", *drawn)}

    async def scene(path: str) -> dict[str, Any]:
        dashboard, browser = home.dashboard(), Browser()
        place, _, query = path.partition("?")
        headers = [(b"host", b"127.0.0.1")]
        scope = {"type": "http", "method": "GET", "path": f"/live{place}"}
        scope |= {"query_string": query.encode(), "headers": headers}
        task = asyncio.create_task(dashboard.application(scope, browser.receive, browser.send))  # type: ignore[arg-type]
        await until(lambda: browser.parts())
        dashboard.streams.end()
        await task
        return browser.parts()[0]

    for path, text in pages.items():
        parts = asyncio.run(scene(path))
        assert {name for name in parts if name != "charts"} == {
            piece.partition('"')[0] for piece in text.split('id="')[1:] if piece.startswith("part-")
        }
        assert ("charts" in parts) == (path in drawn)


# ---- looks


def test_a_desk_follows_a_run(tmp_path: Path) -> None:
    home = Home(tmp_path / "server")
    path = home.run("r1", state="running", rounds=2)
    desk, run = RunDetail(path), RunDirectory(path)
    first = desk.look("running")
    assert first.report is not None
    assert first.report.communication.once.payload_bytes == 2 * 2 * 5000
    assert desk.look("running") is first  # not looked at again within a second
    metrics = run.open_metrics()
    metrics.write(3, {"acc": 0.9, "odd": float("nan")})
    with run.open_ledger() as ledger:
        ledger.record(Transfer("a", "up", "update", "int8", 3, 0, 0, 4000, 1000, 1100, 0, 1.0))
    run.add_failure("a", 0, "it broke", "")
    second = desk.look("failed")  # another state: at once
    assert second.report is not None
    assert second.report.communication.once.payload_bytes == 2 * 2 * 5000 + 1000
    assert second.metrics is not None
    assert list(second.metrics) == ["acc"]
    assert second.metrics["acc"][-1] == (3, 0.9)
    assert [failure["error"] for failure in second.failures] == ["it broke"]


def test_a_long_metric_is_thinned_out_and_keeps_its_ends() -> None:
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


def test_rates_are_those_of_the_last_seconds(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "r", {"id": "r", "workload": "x", "config": {}, "seed": 0, "nodes": []})
    pulse, now = Throughput(run.path), 1_000_000.0

    def transfer(node: str, way: str, size: int, age: float) -> Transfer:
        return Transfer(node, way, "k", "raw", 1, 0, 0, size, size, size, 0, now - age)  # type: ignore[arg-type]

    with run.open_ledger() as ledger:
        ledger.record(transfer("a", "up", 7_000, 3600))
        for age in range(2, 11):
            ledger.record(transfer("a", "up", 1_000, age))
        ledger.record(transfer("b", "down", 5_000, 5))
    assert pulse.look(now)
    assert pulse.bytes == {"up": 16_000, "down": 5_000, "peer": 0}
    assert pulse.rates(now) == {("a", "up"): 900.0, ("b", "down"): 500.0}
    assert not pulse.look(now + 30)
    assert pulse.rates(now + 30) == {}
    assert pulse.bytes == {"up": 16_000, "down": 5_000, "peer": 0}
