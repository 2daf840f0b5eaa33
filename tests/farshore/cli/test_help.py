"""Help texts are printed as written, and the command line completes itself in a shell."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import typer.main

from farshore.cli.main import app, execute
from farshore.core import workloads


def _commands(command: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    inner = getattr(command, "commands", {})
    return [path, *(found for name in inner for found in _commands(inner[name], (*path, name)))]


COMMANDS = _commands(typer.main.get_command(app))


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_has_no_stray_backslashes(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert execute([*path, "--help"]) == 0
    text = capsys.readouterr().out
    assert "Usage: farshore" in text
    assert "\\" not in text


def test_defaults_are_shown_in_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    execute(["server", "up", "--help"])
    assert "[default: 127.0.0.1]" in capsys.readouterr().out


def _completions(*words: str) -> list[str]:
    environment = {
        **os.environ,
        "_FARSHORE_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(("farshore", *words)),
        "COMP_CWORD": str(len(words)),
    }
    command = [sys.executable, "-P", "-m", "farshore"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_commands_options_and_methods_are_completed() -> None:
    assert _completions("no") == ["node", "nodes"]
    assert _completions("nodes", "") == ["ls", "trust", "revoke"]
    assert "--from-start" in _completions("runs", "resume", "--from")
    assert _completions("run", "pin") == [name for name in workloads.names() if name.startswith("pin")] != []
