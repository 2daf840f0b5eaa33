"""A cluster of two Ray nodes, given by its address: the bits of one process, also when an actor is killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from .test_ray_workers import run, threads  # noqa: F401 - a fixture

pytest.importorskip("ray", reason="the extra 'scale' is not installed")
pytest.importorskip("sklearn")
from farshore.simulations.federated.ray_workers import RayWorkers

pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.timeout(600)]

_START_SECONDS = 240.0


@contextmanager
def _started(arguments: list[str], log: Path) -> Iterator[None]:
    """One node of a cluster as ``ray start --block`` in a process group of its own, which is killed at the end."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_raylet_start_wait_time_s": "180"}
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)
    try:
        yield
    finally:
        family = [process, *psutil.Process(process.pid).children(recursive=True)] if process.poll() is None else []
        for member in family:
            try:
                os.kill(member.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        process.wait()


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a cluster of two nodes with one core each."""
    folder = Path("/tmp") / f"farshore-ray-{os.getpid()}"  # Ray's sockets allow short paths only
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    logs = tmp_path_factory.mktemp("logs")
    head = ["--head", f"--port={address.rpartition(':')[2]}", "--include-dashboard=false", f"--temp-dir={folder}"]
    head.append("--disable-usage-stats")
    with ExitStack() as stack:
        stack.enter_context(_started(head, logs / "head"))
        _wait_for_nodes(address, 1, logs / "head")
        stack.enter_context(_started([f"--address={address}", "--disable-usage-stats"], logs / "second"))
        _wait_for_nodes(address, 2, logs / "second")
        yield address


def _wait_for_nodes(address: str, count: int, log: Path) -> None:
    script = (
        f"import ray; ray.init(address={address!r}, log_to_driver=False); print(sum(n['Alive'] for n in ray.nodes()))"
    )
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        if done.returncode == 0 and int(done.stdout.split()[-1]) >= count:
            return
        time.sleep(1)
    raise AssertionError(f"the cluster has not {count} nodes: {log.read_text(errors='replace')[-2000:]}")


def test_a_cluster_of_two_nodes_has_the_bits_of_one_process_though_an_actor_is_killed(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    request = RayWorkers._request
    raylets: set[int] = set()
    killed: list[int] = []

    def request_and_kill(self: RayWorkers, index: int, round_index: int, assigned: Any, state: Any) -> Any:
        process = ray.get(self._actors[index].ready.remote())
        raylets.add(psutil.Process(process).ppid())
        reference = request(self, index, round_index, assigned, state)
        if round_index == 2 and not killed:
            killed.append(process)
            os.kill(process, signal.SIGKILL)
        return reference

    monkeypatch.setattr(RayWorkers, "_request", request_and_kill)
    result, state = run(tmp_path / "cluster", workers=2, backend="ray", address=cluster)
    assert killed
    assert len(raylets) == 2  # both nodes took part
    monkeypatch.undo()
    expected_result, expected = run(tmp_path / "alone")
    assert result == expected_result
    assert [name for name in expected if not np.array_equal(expected[name], state[name])] == []
