"""``farshore estimate``: estimated communication, and errors for methods without an estimate."""

from __future__ import annotations

import json

import pytest

from farshore.cli.main import execute
from farshore.core.errors import ExitCode


def test_tables_and_json_have_the_same_values(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["estimate", "ping", "--nodes", "2", "--set", "rounds=3", "--set", "kilobytes=100"]
    assert execute([*command, "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    assert output["communication"]["total"]["payload_bytes"] == 2 * 3 * 2 * 102_400
    assert output["run"]["state"] == "estimated"
    assert output["assumed"] == []
    assert execute(command) == 0
    text = capsys.readouterr().out
    assert text.startswith("estimate: ping, 2 nodes, seed 0")
    assert "1.23 MB" in text
    assert "1 GbE" in text


@pytest.mark.parametrize(
    ("arguments", "code", "cause"),
    [
        (["flower"], ExitCode.CONFIG, "cannot be estimated"),
        (["pong"], ExitCode.NOT_FOUND, "unknown method 'pong'"),
        (["ping", "--set", "round=3"], ExitCode.CONFIG, "did you mean 'rounds'?"),
        (["vhl", "--nodes", "5", "--assume", "tokens=many"], ExitCode.CONFIG, "write e.g. --assume tokens=13.3"),
    ],
)
def test_errors_name_their_cause_without_a_traceback(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: ExitCode, cause: str
) -> None:
    assert execute(["estimate", *arguments]) == code
    output = capsys.readouterr().err
    assert cause in output
    assert "Traceback" not in output


def test_an_estimate_by_rehearsal_counts_all_nodes_and_rounds(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["estimate", "ping", "--set", "rounds=2000", "--set", "kilobytes=1", "--json"]
    frames = []
    for nodes in ("1", "3"):
        assert execute([*command, "--nodes", nodes]) == 0
        frames.append(json.loads(capsys.readouterr().out)["communication"]["total"]["frames"])
    assert frames == [2 + 4 * 2000, 3 * (2 + 4 * 2000)]


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (["ping", "--assume", "tokens=3"], "is estimated by running it"),
        (["ping", "--nodes", "camera=1"], "no role 'camera'"),
        (["vhl", "--nodes", "camera=1"], "write --nodes 3"),
        (["split_segment"], "cannot be estimated"),
    ],
)
def test_what_a_rehearsal_cannot_do_is_refused(
    arguments: list[str], cause: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(["estimate", *arguments]) == ExitCode.CONFIG
    assert cause in " ".join(capsys.readouterr().err.split())
