"""``runs export`` and ``runs import``: an imported run can be listed, shown, reported and compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from farshore.cli.main import execute
from farshore.core.errors import ExitCode
from farshore.core.transfer import Transfer
from farshore.runs.directory import RunDirectory


def test_an_imported_run_is_reported_compared_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    info = {"id": "one", "workload": "ping", "config": {"rounds": 2}, "seed": 3, "nodes": ["a"]}
    run = RunDirectory.create(tmp_path / "here" / "server" / "runs" / "one", info)
    with run.open_ledger() as ledger:
        ledger.record(Transfer("a", "up", "echo", "raw", 1, 0, 0, 500, 500, 540, 0, 1.0))
    run.write_result({"checksum": "abc"})
    monkeypatch.setenv("FARSHORE_HOME", str(tmp_path / "here"))
    file = str(tmp_path / "one.tar")
    assert execute(["runs", "export", "one", file, "--json"]) == 0
    exported = json.loads(capsys.readouterr().out)
    assert exported["event"] == "exported"

    monkeypatch.setenv("FARSHORE_HOME", str(tmp_path / "there"))
    assert execute(["report", "one"]) == ExitCode.NOT_FOUND
    assert execute(["runs", "import", file, "--sha256", exported["sha256"]]) == 0
    assert execute(["runs", "import", file]) == ExitCode.STORAGE
    assert execute(["runs", "import", file, "--as", "two"]) == 0
    output = capsys.readouterr()
    assert "imported run one: 4 files" in output.out
    assert "already contains a run 'one'" in output.err

    assert execute(["report", "one", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["communication"]["total"]["frame_bytes"] == 540
    assert execute(["compare", "one", "two"]) == 0
    assert execute(["runs", "show", "two"]) == 0
    shown = capsys.readouterr().out
    assert "run two: ping, finished" in shown
    assert '"rounds": 2' in shown
    assert "checksum" in shown
    assert execute(["runs", "show", "three"]) == ExitCode.NOT_FOUND
    capsys.readouterr()
    assert execute(["runs", "ls", "--json"]) == 0
    assert {run["id"]: run["state"] for run in json.loads(capsys.readouterr().out)} == {
        "one": "finished",
        "two": "finished",
    }
