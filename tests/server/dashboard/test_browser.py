"""The dashboard in headless Chromium: all pages, live updates, keyboard use, and axe's accessibility rules."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from farshore.runs.directory import RunDirectory
from farshore.server.dashboard.options import DashboardOptions

from .homes import EVIL, Home

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

pytestmark = [
    pytest.mark.process,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="Playwright is not installed"),
]

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


class Browser:
    """A page that records errors, dialogs, and requests to other hosts."""

    def __init__(self, chromium: Any, url: str, *, scheme: str = "light", viewport: dict[str, int] = DESKTOP) -> None:
        self.url = url
        self.context = chromium.new_context(color_scheme=scheme, viewport=viewport, reduced_motion="reduce")
        self.page = self.context.new_page()
        self.problems: list[str] = []
        self.page.on("console", lambda m: self.problems.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", lambda r: None if r.url.startswith((url, "data:")) else self.problems.append(r.url))
        self.page.on("dialog", lambda dialog: (self.problems.append("a dialog"), dialog.dismiss()))

    def go(self, path: str) -> Any:
        self.page.goto(self.url + path)
        if self.page.locator("#stream").count():
            self.until("document.getElementById('stream').textContent === 'live'")
        for chart in self.page.locator(".chart").all():
            chart.locator(".main-svg").first.wait_for()
        return self.page

    def until(self, expression: str) -> None:
        """Wait until ``expression`` is true; Playwright's ``wait_for_function`` uses eval, which the policy forbids."""
        end = time.monotonic() + 30
        while not self.page.evaluate(expression):
            assert time.monotonic() < end, expression
            self.page.wait_for_timeout(100)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()


@pytest.fixture(scope="module")
def cloud(start_once: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("home") / "server"
    started = start_once(home=folder, dashboard=DashboardOptions(folder))
    started.join("edge-1", "edge-2")
    return started


@pytest.fixture(scope="module")
def url(cloud: Any) -> str:
    """URL of the server's dashboard: its only child process that listens on a port."""
    import psutil

    for child in psutil.Process(cloud.server.pid).children():
        for connection in child.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                return f"http://127.0.0.1:{connection.laddr.port}"
    raise AssertionError("no dashboard listens")


@pytest.fixture(scope="module")
def runs(cloud: Any) -> dict[str, str]:
    """Ids of runs in the states that pages display differently."""
    done = [cloud.submit({"rounds": n, "kilobytes": 32}, count=2) for n in (10, 20)]
    for run in done:
        cloud.when(run, "finished")
    running = cloud.submit({"rounds": 20_000, "kilobytes": 32, "pause_ms": 40}, count=2)
    cloud.when(running, "running", done=3)
    waiting = cloud.submit({"rounds": 5}, nodes=("edge-1", "edge-9"))
    failed = RunDirectory(Path(cloud.run(done[1]).directory))
    failed.add_failure("edge-2", 0, "ValueError: it broke", "Traceback (most recent call last):\nValueError: it broke")
    return {"done": done[0], "failed": done[1], "running": running, "waiting": waiting}


def paths(runs: dict[str, str]) -> list[str]:
    comparison = f"/compare?run={runs['done']}&run={runs['failed']}"
    return ["/runs", "/nodes", *(f"/runs/{run}" for run in runs.values()), "/compare", comparison, "/runs?q=none"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_every_page_loads_without_errors(
    chromium: Any, url: str, runs: dict[str, str], scheme: str, viewport: dict[str, int]
) -> None:
    with Browser(chromium, url, scheme=scheme, viewport=viewport) as tab:
        for path in paths(runs):
            page = tab.go(path)
            assert page.locator("h1").count() == 1, path
            assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"], path
            colors = page.evaluate("['color', 'backgroundColor'].map(n => getComputedStyle(document.body)[n])")
            assert (colors[1] == "rgb(255, 255, 255)") == (scheme == "light")
        assert tab.problems == []


def test_pages_are_updated_without_a_reload(chromium: Any, url: str, cloud: Any, runs: dict[str, str]) -> None:
    with Browser(chromium, url) as tab, Browser(chromium, url) as other:
        page = tab.go(f"/runs/{runs['running']}")
        page.evaluate("window.kept = 1")
        bar = "Number(document.querySelector('#part-state progress').value)"
        drawn = "Math.max(...document.getElementById('chart-rounds').data[0].y.keys())"
        first, points = page.evaluate(bar), page.evaluate(drawn)
        tab.until(f"{bar} > {first} + 20")
        tab.until(f"{drawn} > {points}")
        page.locator("#part-summary dd", has_text="/s").first.wait_for()
        nodes = other.go("/nodes")
        assert nodes.locator("#node-edge-3").count() == 0
        cloud.join("edge-3")
        nodes.locator("#node-edge-3 .mark", has_text="connected").wait_for()
        with cloud.admin() as admin:
            admin.cancel(runs["running"])
        page.locator("#part-state .mark", has_text="cancelled").wait_for()
        assert page.evaluate("window.kept") == 1
        assert tab.problems + other.problems == []


def test_a_comparison_is_updated_while_its_runs_are_running(
    chromium: Any, url: str, cloud: Any, runs: dict[str, str]
) -> None:
    run = cloud.submit({"rounds": 20_000, "kilobytes": 1, "pause_ms": 20}, nodes=("edge-1",))
    cloud.when(run, "running", done=1)
    with Browser(chromium, url) as tab:
        page = tab.go(f"/compare?run={runs['done']}&run={run}")
        page.evaluate("window.kept = 1")
        rows = "[...document.querySelectorAll('#part-comparison tr')]"
        row = f"{rows}.find(r => r.textContent.includes('each message once'))"
        cells = f"[...{row}.querySelectorAll('td')].map(cell => cell.textContent)"
        done, growing = page.evaluate(cells)
        tab.until(f"{cells}[1] !== {json.dumps(growing)}")
        assert page.evaluate(cells)[0] == done
        with cloud.admin() as admin:
            admin.cancel(run)
        page.locator("#part-comparison td", has_text="cancelled").wait_for()
        assert page.evaluate("window.kept") == 1
        assert tab.problems == []


def test_updates_keep_focus_checkboxes_and_open_details(
    chromium: Any, url: str, cloud: Any, runs: dict[str, str]
) -> None:
    run = cloud.submit({"rounds": 20_000, "kilobytes": 1, "pause_ms": 20}, nodes=("edge-2",))
    cloud.when(run, "running", done=1)
    with Browser(chromium, url) as tab:
        page = tab.go("/runs")
        checkbox = page.locator(f"#run-{runs['done']} input")
        checkbox.check()
        checkbox.focus()
        bar = f"Number(document.querySelector('#run-{run} progress').value)"
        tab.until(f"{bar} > {page.evaluate(bar)} + 5")
        assert checkbox.is_checked()
        assert checkbox.evaluate("input => input === document.activeElement")
        page = tab.go(f"/runs/{run}")
        page.locator("summary", has_text="Settings").click()
        bar = "Number(document.querySelector('#part-state progress').value)"
        tab.until(f"{bar} > {page.evaluate(bar)} + 5")
        assert page.locator("details[open] pre").is_visible()
        assert tab.problems == []
    with cloud.admin() as admin:
        admin.cancel(run)


def test_the_dashboard_can_be_used_by_keyboard(chromium: Any, url: str, runs: dict[str, str]) -> None:
    with Browser(chromium, url) as tab:
        page = tab.go("/runs")
        focused = "document.activeElement.textContent.trim()"
        page.keyboard.press("Tab")
        assert page.evaluate(focused) == "Skip to content"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"
        for run in (runs["done"], runs["failed"]):
            for _ in range(60):
                page.keyboard.press("Tab")
                if page.evaluate("document.activeElement.value") == run:
                    break
            page.keyboard.press("Space")
        page.keyboard.press("Enter")
        page.wait_for_url("**/compare?*")
        assert page.locator("thead th", has_text=runs["done"]).count() >= 1
        assert tab.problems == []


@pytest.mark.skipif(importlib.util.find_spec("axe_playwright_python") is None, reason="axe is not installed")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_violations(chromium: Any, url: str, runs: dict[str, str], scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    with Browser(chromium, url, scheme=scheme) as tab:
        for path in paths(runs):
            page = tab.go(path)
            found = Axe().run(page).response["violations"]
            serious = {
                v["id"]: [n["html"][:200] for n in v["nodes"]][:3]
                for v in found
                if v["impact"] in ("serious", "critical")
            }
            assert serious == {}, f"{path}: {json.dumps(serious, indent=1)}"


def test_updates_of_a_thousand_nodes_do_not_shift_the_layout(
    chromium: Any, serving: Callable[[Home], str], tmp_path: Path
) -> None:
    home = Home(tmp_path / "server")
    for number in range(1000):
        home.node(f"node-{number}")
    with Browser(chromium, serving(home)) as tab:
        tab.page.add_init_script(
            "window.shift = 0;"
            "const add = list => { for (const entry of list.getEntries()) window.shift += entry.value; };"
            "new PerformanceObserver(add).observe({ type: 'layout-shift', buffered: true });"
        )
        page = tab.go("/nodes")
        assert page.locator("tbody tr").count() == 100
        home.node("node-7", revoked=1.0)
        page.locator("#node-node-7 .mark", has_text="revoked").wait_for()
        assert page.evaluate("window.shift") < 0.01
        page.get_by_role("link", name="Next").click()
        page.locator("#node-node-100").wait_for()
        assert tab.problems == []


def test_names_with_markup_run_no_script(chromium: Any, serving: Callable[[Home], str], tmp_path: Path) -> None:
    home = Home(tmp_path / "server")
    home.run("evil", EVIL, metric=EVIL, kind=EVIL, config={EVIL: EVIL}, reason=EVIL)
    home.run("evil2", EVIL, metric=EVIL, kind=EVIL)
    with Browser(chromium, serving(home)) as tab:
        for path in ("/runs", "/runs/evil", "/compare?run=evil&run=evil2", "/nodes"):
            page = tab.go(path)
            assert page.locator("img[src=x]").count() == 0
        assert tab.problems == []


def test_sign_in_and_sign_out(chromium: Any, serving: Callable[..., str], tmp_path: Path) -> None:
    home = Home(tmp_path / "server")
    url = serving(home, "--login")
    with Browser(chromium, url) as tab:
        page = tab.page
        page.goto(url + "/nodes")
        assert page.url.endswith("/login")
        page.get_by_label("Token").fill((home.path / "dashboard.token").read_text().strip())
        page.keyboard.press("Enter")
        page.wait_for_url("**/runs")
        tab.until("document.getElementById('stream').textContent === 'live'")
        assert page.evaluate("document.cookie") == ""
        page.get_by_role("button", name="Sign out").click()
        page.wait_for_url("**/login")
        assert tab.problems == []


@pytest.fixture
def serving() -> Iterator[Callable[..., str]]:
    """``serving(home, *options)`` starts a dashboard process for that home and returns its URL."""
    script = "from farshore.cli.main import execute; import sys; sys.exit(execute(sys.argv[1:]))"
    processes = []

    def start(home: Home, *options: str) -> str:
        command = [sys.executable, "-P", "-c", script, "dashboard", "--json", "--port", "0", "--home", str(home.path)]
        process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout is not None
        return str(json.loads(process.stdout.readline())["address"]).rstrip("/")

    yield start
    for process in processes:
        process.terminate()
        process.wait(10)
