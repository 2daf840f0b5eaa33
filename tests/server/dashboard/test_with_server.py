"""The dashboard process with a real server and real nodes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from farshore.core.errors import MissingExtraError, NotFoundError, PortInUseError
from farshore.server.dashboard import serving
from farshore.server.dashboard.options import DashboardOptions
from farshore.server.dashboard.serving import serve_dashboard

pytestmark = [pytest.mark.process, pytest.mark.timeout(110)]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def url() -> str:
    return f"http://127.0.0.1:{free_port()}"


@pytest.fixture(scope="module")
def cloud(start_once: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory, url: str) -> Any:
    folder = tmp_path_factory.mktemp("home") / "server"
    started = start_once(home=folder, dashboard=DashboardOptions(folder, port=int(url.rpartition(":")[2])))
    started.join("a", "b")
    return started


def events(url: str, path: str) -> Iterator[dict[str, Any]]:
    """Yield the parts that an event stream sends."""
    with httpx.stream("GET", f"{url}/live{path}", timeout=30) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        for line in response.iter_lines():
            if line.startswith("data: "):
                yield json.loads(line.removeprefix("data: "))


def test_the_stream_of_a_run_shows_states_progress_and_rates_until_its_end(cloud: Any, url: str) -> None:
    run = cloud.submit({"rounds": 60, "kilobytes": 64, "pause_ms": 40}, nodes=("a", "late"))
    states, reasons, done, rates = [], set(), set(), set()
    for parts in events(url, f"/runs/{run}"):
        if text := parts.get("part-state"):
            states.append(re.search(r'class="mark \w+">(\w+)', text)[1])  # type: ignore[index]
            reasons |= set(re.findall(r"<span>(waiting[^<]*)", text))
            done |= {int(number) for number in re.findall(r'value="(\d+)"', text)}
        rates |= set(re.findall(r"<dd>([^<]*/s)</dd>", parts.get("part-summary", "")))
        if states[-1] == "waiting" and "late" not in cloud.agents:
            cloud.join("late")
        if states[-1] == "finished":
            break
    assert (states[0], states[-1]) == ("waiting", "finished")
    assert any("late" in reason for reason in reasons), reasons
    assert len(done) > 2
    assert rates
    nodes = httpx.get(f"{url}/nodes").text
    assert set(re.findall(r'id="node-([^"]*)"', nodes)) == {"a", "b", "late"}
    assert nodes.count(">connected<") >= 3


@pytest.mark.slow
def test_the_node_list_shows_busy_and_lost_nodes(cloud: Any, url: str, until: Callable[..., Any]) -> None:
    cloud.join("leaving")
    run = cloud.submit({"rounds": 100_000, "kilobytes": 16, "pause_ms": 5}, nodes=("b",))
    row = re.compile(r'id="node-b".*?</tr>', re.S)

    def is_busy() -> bool:
        found = row.search(httpx.get(f"{url}/nodes").text)
        return found is not None and run in found[0] and "kB/s" in found[0]

    until(is_busy)
    cloud.agents["leaving"].kill()
    until(lambda: "missed 3 heartbeats" in httpx.get(f"{url}/nodes?q=leaving").text)
    with cloud.admin() as admin:
        admin.cancel(run)
    until(lambda: "cancelled" in httpx.get(f"{url}/runs?q={run}").text)


def test_a_killed_dashboard_is_restarted_and_does_not_affect_runs(
    cloud: Any, url: str, until: Callable[..., Any]
) -> None:
    server = psutil.Process(cloud.server.pid)
    process = next(p for p in server.children() if "farshore.server.dashboard.process" in p.cmdline())
    assert process.nice() > server.nice()
    run = cloud.submit({"rounds": 30, "kilobytes": 1, "pause_ms": 50}, nodes=("a",))
    cloud.when(run, "running")
    process.kill()
    assert cloud.when(run, "finished").epoch == 0

    def is_restarted() -> bool:
        with contextlib.suppress(httpx.TransportError):
            return run in httpx.get(f"{url}/runs").text
        return False

    until(is_restarted)


def test_off_loopback_it_requires_sign_in_and_shows_stored_data_after_the_server_stops(
    cloud: Any, until: Callable[..., Any]
) -> None:
    command = "from farshore.cli.main import execute; import sys; sys.exit(execute(sys.argv[1:]))"
    arguments = ["dashboard", "--json", "--port", "0", "--home", str(cloud.options.home), "--host", "0.0.0.0"]
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        token = Path(ready["token_file"]).read_text()
        assert ready["address"].startswith("https://")
        trusted = ssl.create_default_context(cafile=str(cloud.options.home / "certificate.pem"))
        base_url = f"https://127.0.0.1:{ready['address'].rstrip('/').rpartition(':')[2]}"
        with httpx.Client(base_url=base_url, verify=trusted) as browser:
            until(lambda: _reachable(browser))
            assert browser.get("/runs").status_code == 303
            assert browser.post("/login", data={"token": token}).status_code == 303
            assert "server up" in browser.get("/nodes").text
            os.kill(cloud.server.pid, signal.SIGTERM)
            cloud.server.join(20)
            until(lambda: "server down" in browser.get("/nodes").text)
            assert "the server is not running" in browser.get("/nodes").text
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert process.returncode in (0, 130), errors
    assert "Traceback" not in errors
    assert token.strip() not in errors


def _reachable(browser: httpx.Client) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return browser.get("/login").status_code == 200
    return False


def test_a_port_in_use_and_a_home_without_a_store_raise_errors(tmp_path: Path) -> None:
    options = DashboardOptions(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(PortInUseError, match="choose another port"):
        serve_dashboard(replace(options, port=taken.getsockname()[1]), lambda _: None)
    with pytest.raises(NotFoundError, match=r"run store .* does not exist"):
        serve_dashboard(options, lambda _: None)


def test_the_error_names_a_missing_package_and_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "find_spec", lambda name: None if name == "uvicorn" else name)
    with pytest.raises(MissingExtraError, match=r"'uvicorn' is not installed – .*pip install .*\[dashboard\]'"):
        serve_dashboard(DashboardOptions(tmp_path), lambda _: None)
