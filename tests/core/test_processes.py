"""Child processes: messages both ways, output, and that a child never outlives its parent."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from farshore.core.errors import DataError, ExitCode, WireError
from farshore.core.processes import Child, Parent

pytestmark = [pytest.mark.process, pytest.mark.timeout(60)]

# Children run modules by name; these are written where the child finds them.
_ECHO = """
from farshore.core.processes import Parent
parent = Parent.find()
first = parent.first()
print("x" * first["letters"])
parent.send({"echo": first})
"""
_FAMILY = """
import subprocess, sys, time
from farshore.core.processes import Parent
parent = Parent.find()
grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
parent.send({"grandchild": grandchild.pid})
while True:  # never looks at its parent
    time.sleep(600)
"""
_PARENT = """
import asyncio, sys
from farshore.core.processes import Child
async def main():
    child = await Child.start("family_child")
    async for message in child.messages():
        print(child.pid, message["grandchild"], flush=True)
asyncio.run(main())
"""


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "echo_child.py").write_text(_ECHO)
    (tmp_path / "family_child.py").write_text(_FAMILY)
    (tmp_path / "parent_of_family.py").write_text(_PARENT)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    return tmp_path


def _gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _all_gone(pids: list[int], seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while not all(map(_gone, pids)) and time.monotonic() < end:
        time.sleep(0.02)
    return all(map(_gone, pids))


def test_messages_go_both_ways_and_long_output_comes_whole(path: Path) -> None:
    async def check() -> None:
        child = await Child.start("echo_child")
        child.send({"letters": 100_000})
        said = [message async for message in child.messages()]
        output = [line async for line in child.output()]
        assert await child.wait() == 0
        assert said == [{"echo": {"letters": 100_000}}]
        assert "".join(output) == "x" * 100_000

    asyncio.run(check())


def test_stopping_a_child_takes_its_own_children_along(path: Path) -> None:
    async def check() -> None:
        child = await Child.start("family_child")
        grandchild = (await anext(child.messages()))["grandchild"]
        assert await child.stop(5.0) == -signal.SIGTERM
        assert _all_gone([grandchild])

    asyncio.run(check())


def test_a_child_that_does_not_end_when_asked_is_killed_after_the_grace(path: Path) -> None:
    async def check() -> None:
        child = await Child.start("family_child")
        await anext(child.messages())
        assert await child.stop(0.3, first=None) == -signal.SIGKILL

    asyncio.run(check())


def test_a_killed_parent_takes_its_child_along_whatever_it_does(path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-P", "-m", "parent_of_family"], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child, grandchild = map(int, parent.stdout.readline().split())
    parent.kill()
    parent.wait()
    assert _all_gone([child])
    os.kill(grandchild, signal.SIGKILL)


def test_what_a_program_died_of_is_one_line_and_only_a_surprise_has_a_traceback() -> None:
    ours, theirs = socket.socketpair()
    parent = Parent(theirs)
    told = []
    with ours, theirs, ours.makefile("r") as lines:
        for error in (DataError("there is\n no 'sst2'", hint="give one"), ZeroDivisionError("by 0")):
            try:
                raise error
            except Exception as caught:
                code = parent.failed(caught)
            told.append(json.loads(lines.readline()))
            assert told[-1]["exit_code"] == code
    expected, surprise = told
    assert expected == {
        "type": "failed",
        "exit_code": ExitCode.DATA,
        "error": "there is no 'sst2' – give one",
        "traceback": "",
    }
    assert (surprise["exit_code"], surprise["error"]) == (ExitCode.RUN_FAILED, "ZeroDivisionError: by 0")
    assert "raise error" in surprise["traceback"]


def test_a_program_of_ours_started_by_hand_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FARSHORE_PARENT", raising=False)
    with pytest.raises(WireError, match="started by farshore itself"):
        Parent.find()
