"""Runs that wait for nodes: a limit, and what a client says that ends before them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from farshore.cli.settings import seconds
from farshore.core.errors import ConfigError, ExitCode


@pytest.mark.parametrize(
    ("text", "value"), [("90", 90), ("90s", 90), ("10m", 600), ("1.5h", 5400), ("2 d", 172800), ("5 min", 300)]
)
def test_durations_are_read(text: str, value: float) -> None:
    assert seconds(text, "--wait") == value


@pytest.mark.parametrize("text", ["", "soon", "0", "-1m", "1w", "m", "1m30", "inf", "nan"])
def test_other_texts_are_no_durations(text: str) -> None:
    with pytest.raises(ConfigError, match="not a duration"):
        seconds(text, "--wait")


_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _heed_signals() -> None:
    """Undo what a shell does to its background jobs, which the tests may be one of."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def _farshore(cloud: Any, *words: str, **more: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-m", "farshore", *words, "--home", str(cloud.options.home)]
    return subprocess.Popen(
        command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **{"preexec_fn": _heed_signals, **more}
    )


def _read_until(client: subprocess.Popen[str], text: str) -> None:
    assert client.stdout is not None
    line = "the beginning"
    while text not in line:
        assert line, "the client has ended"
        line = client.stdout.readline()


@pytest.mark.process
@pytest.mark.timeout(90)
def test_a_run_fails_that_waits_longer_than_it_may_and_says_for_what(cloud: Any) -> None:
    cloud.join("kitchen")
    run = _farshore(cloud, "run", "ping", "--node", "kitchn", "--wait", "1s")
    _, errors = run.communicate(timeout=60)
    assert run.returncode == ExitCode.RUN_FAILED
    assert "no nodes within 1 s: waiting for kitchn (never joined; did you mean 'kitchen'?)" in errors


@pytest.mark.process
@pytest.mark.timeout(90)
def test_a_run_that_gets_its_nodes_in_time_is_not_ended_by_the_limit(cloud: Any, until: Any) -> None:
    with cloud.admin() as admin:
        run = admin.submit("ping", {"rounds": 100_000, "pause_ms": 10}, node_count=1, wait_seconds=3).id
    cloud.join("a")
    until(lambda: cloud.run(run).done > 400)
    assert cloud.run(run).state == "running"


@pytest.mark.process
@pytest.mark.timeout(90)
@pytest.mark.parametrize("number", _SIGNALS)
def test_a_client_that_ends_says_that_its_run_remains_queued(cloud: Any, until: Any, number: signal.Signals) -> None:
    client = _farshore(cloud, "run", "ping", "--nodes", "3", start_new_session=True)
    _read_until(client, "waiting for 3 of 3 nodes")
    os.kill(client.pid, number)
    _, errors = client.communicate(timeout=30)
    with cloud.admin() as admin:
        (run,) = admin.runs()
    assert client.returncode == ExitCode.INTERRUPTED
    assert f"run {run.id} remains queued (waiting for 3 of 3 nodes" in errors
    assert f"farshore runs cancel {run.id}" in errors
    assert "Traceback" not in errors
    assert run.state == "waiting"


@pytest.mark.process
@pytest.mark.timeout(90)
def test_a_client_under_nohup_outlives_its_terminal(cloud: Any) -> None:
    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    client = _farshore(cloud, "run", "ping", "--nodes", "3", start_new_session=True, preexec_fn=ignore)
    _read_until(client, "waiting for 3 of 3 nodes")
    os.kill(client.pid, signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        client.wait(2)
    client.kill()
    client.communicate()


@pytest.mark.process
@pytest.mark.timeout(90)
def test_a_client_whose_server_dies_says_what_becomes_of_its_run(cloud: Any, until: Any) -> None:
    client = _farshore(cloud, "run", "ping", "--nodes", "3")
    _read_until(client, "waiting for 3 of 3 nodes")
    cloud.server.kill()
    _, errors = client.communicate(timeout=30)
    assert client.returncode == ExitCode.UNREACHABLE
    assert "was waiting; once its server answers again: farshore runs show" in errors


_LOST = """
import os, signal, sys, time
from farshore.cli import run

class Swallows:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)  # the handler's exception is raised here, where Python discards it

try:
    with run.interrupted_by_signals():
        Swallows()
        time.sleep(60)
except KeyboardInterrupt:
    print("interrupted", flush=True)
if "hang" in sys.argv:
    time.sleep(60)
"""


@pytest.mark.timeout(60)
def test_an_interrupt_that_python_discards_is_raised_again_and_a_hanging_exit_is_cut_short() -> None:
    given: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 30, "preexec_fn": _heed_signals}
    done = subprocess.run([sys.executable, "-P", "-c", _LOST], **given)
    assert (done.stdout, done.returncode) == ("interrupted\n", 0)
    done = subprocess.run([sys.executable, "-P", "-c", _LOST, "hang"], **given)
    assert (done.stdout, done.returncode) == ("interrupted\n", ExitCode.INTERRUPTED)
