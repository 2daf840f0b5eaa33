"""``farshore estimate`` tells what a run would send, or why it cannot."""

from __future__ import annotations

import json

import pytest

from farshore.cli.main import execute
from farshore.core.errors import ExitCode


def test_tables_and_json_tell_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["estimate", "ping", "--nodes", "2", "--set", "rounds=3", "--set", "kilobytes=100"]
    assert execute([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["communication"]["total"]["payload_bytes"] == 2 * 3 * 2 * 102_400
    assert told["run"]["state"] == "estimated"
    assert told["assumed"] == []
    assert execute(command) == 0
    text = capsys.readouterr().out
    assert text.startswith("estimate: ping, 2 nodes, seed 0")
    assert "1.23 MB" in text
    assert "1 GbE" in text


@pytest.mark.parametrize(
    ("words", "code", "cause"),
    [
        (["flower"], ExitCode.CONFIG, "cannot be told beforehand"),
        (["pong"], ExitCode.NOT_FOUND, "no method is called 'pong'"),
        (["ping", "--set", "round=3"], ExitCode.CONFIG, "did you mean 'rounds'?"),
        (["vhl", "--nodes", "5", "--assume", "tokens=many"], ExitCode.CONFIG, "write e.g. --assume tokens=13.3"),
    ],
)
def test_what_cannot_be_estimated_is_told_in_words(
    capsys: pytest.CaptureFixture[str], words: list[str], code: ExitCode, cause: str
) -> None:
    assert execute(["estimate", *words]) == code
    told = capsys.readouterr().err
    assert cause in told
    assert "Traceback" not in told
