"""``farshore node join`` as a process: what was said once is remembered, and a second process is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from farshore.core.errors import ExitCode

pytestmark = [pytest.mark.process, pytest.mark.timeout(90)]


def _command(home: Path, *words: str) -> list[str]:
    return [sys.executable, "-P", "-m", "farshore", "node", "join", "--name", "kitchen", "--home", str(home), *words]


@contextmanager
def _joined(cloud: Any, until: Any, home: Path, *words: str) -> Iterator[tuple[Any, Any]]:
    """Run the command until the node is connected; yields the server's view of the node, and the process."""
    process = subprocess.Popen(_command(home, *words), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        lines = []
        while not lines or not lines[-1].startswith("connected"):
            lines.append(process.stdout.readline())
            assert lines[-1], lines
        until(lambda: cloud.node("kitchen").state == "connected")
        yield cloud.node("kitchen"), process
    finally:
        process.terminate()
        process.wait()


def test_data_labels_and_address_are_remembered_until_forgotten(cloud: Any, until: Any, tmp_path: Path) -> None:
    home, data = tmp_path / "home", tmp_path / "imdb"
    data.mkdir()
    options = cloud.agent_options("kitchen")
    said = (options.address, "--token", options.token, "--data", f"imdb={data}", "--label", "room=kitchen")
    with _joined(cloud, until, home, *said) as (node, _):
        assert list(node.data) == ["imdb"]
    with _joined(cloud, until, home) as (node, _):
        assert (list(node.data), dict(node.labels)) == (["imdb"], {"room": "kitchen"})
    with _joined(cloud, until, home, "--data", f"more={data}", "--label", "room=hall") as (node, _):
        assert (list(node.data), dict(node.labels)) == (["imdb", "more"], {"room": "hall"})
    with _joined(cloud, until, home, options.address, "--forget") as (node, _):
        assert (list(node.data), dict(node.labels)) == ([], {})


def test_a_second_join_with_the_same_home_names_the_first_and_does_not_disturb_it(
    cloud: Any, until: Any, tmp_path: Path
) -> None:
    options = cloud.agent_options("kitchen")
    with _joined(cloud, until, tmp_path / "home", options.address, "--token", options.token) as (_, first):
        run = cloud.submit({"rounds": 100_000, "kilobytes": 1, "pause_ms": 20}, count=1)
        until(lambda: cloud.run(run).done >= 3)
        second = subprocess.run(_command(tmp_path / "home"), capture_output=True, text=True, timeout=60)
        assert second.returncode == ExitCode.CONFIG
        assert f"process {first.pid} holds" in second.stderr
        done = cloud.run(run).done
        until(lambda: cloud.run(run).done > done + 3)
        assert cloud.run(run).epoch == 0


@pytest.mark.parametrize("name", ["my node", "küche", "../outside", "x" * 200, " a"])
def test_an_invalid_name_is_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    command = [sys.executable, "-P", "-m", "farshore", "node", "join", "127.0.0.1:1", "--name", name, "--token", "x"]
    environment = {**os.environ, "FARSHORE_HOME": str(tmp_path / "deep" / "home")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == ExitCode.CONFIG, done.stderr
    assert "not a valid node name" in done.stderr
    assert list(tmp_path.iterdir()) == []
