"""A server that is stopped while nodes are connected and runs are followed ends without tracebacks."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from farshore.server.dashboard.options import DashboardOptions

pytestmark = [pytest.mark.process, pytest.mark.timeout(90)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_followers_and_nodes_of_a_stopped_server_cause_no_traceback(
    cloud: Any, until: Any, tmp_path: Path, number: signal.Signals
) -> None:
    cloud.server.terminate()
    cloud.server.join()
    command = [sys.executable, "-P", "-m", "farshore", "server", "up", "--home", str(cloud.options.home), "--port", "0"]
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    until((cloud.options.home / "address").exists)
    cloud.join("a", "b")
    run = cloud.submit({"rounds": 100_000, "kilobytes": 1, "pause_ms": 20}, nodes=("a",))
    waiting = cloud.submit({}, nodes=("nobody",))
    until(lambda: cloud.run(run).done >= 3)
    last: dict[str, str] = {}

    def follow(run_id: str) -> None:
        with cloud.admin() as admin:
            for event in admin.follow(run_id, logs=True):
                last[run_id] = event.run.state

    followers = [threading.Thread(target=follow, args=(run_id,)) for run_id in (run, run, waiting)]
    for follower in followers:
        follower.start()
    until(lambda: len(last) == 2)
    os.killpg(server.pid, number)  # as a terminal does
    _, errors = server.communicate(timeout=20)
    for follower in followers:
        follower.join(10)
    assert server.returncode == 0
    assert last == {run: "interrupted", waiting: "interrupted"}
    assert errors == ""


def test_a_taken_dashboard_port_does_not_end_the_server(start: Any, tmp_path: Any) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        home = tmp_path / "server"
        cloud = start(home=home, dashboard=DashboardOptions(home, port=other.getsockname()[1]))
        cloud.join("a")
        cloud.when(cloud.submit({"rounds": 1, "kilobytes": 1}, count=1), "finished")
        assert "cannot listen on 127.0.0.1" in (home / "server.log").read_text()
