"""``farshore report``: runs by id and path, output files, and errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from farshore.cli.main import execute
from farshore.core.errors import ExitCode
from farshore.core.transfer import Transfer
from farshore.runs.directory import RunDirectory


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The base of all homes, with one run on the server."""
    monkeypatch.setenv("FARSHORE_HOME", str(tmp_path))
    info = {"id": "one", "workload": "ping", "config": {}, "seed": 3, "nodes": ["a"]}
    run = RunDirectory.create(tmp_path / "server" / "runs" / "one", info)
    with run.open_ledger() as ledger:
        ledger.record(Transfer("a", "up", "echo", "raw", 1, 0, 0, 500, 500, 540, 0, 1.0))
    return tmp_path


def test_report_by_id_writes_the_requested_files(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {name: home / f"out.{name}" for name in ("html", "csv", "parquet")}
    assert execute(["report", "one", *(word for n, path in files.items() for word in (f"--{n}", str(path)))]) == 0
    output = capsys.readouterr().out
    assert output.startswith("run one: ping, unfinished, seed 3\n")
    assert "540 B" in output
    assert all(path.stat().st_size > 100 and str(path) in output for path in files.values())


def test_report_by_path_as_json(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["report", str(home / "server" / "runs" / "one"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["communication"]["total"]["frame_bytes"] == 540


def test_missing_runs_and_folders_are_reported_in_one_line(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["report", "two"]) == ExitCode.NOT_FOUND
    assert capsys.readouterr().err.startswith("error: no run is called 'two'")
    assert execute(["report", "one", "--html", str(home / "none" / "x.html")]) == ExitCode.STORAGE
    assert "Traceback" not in capsys.readouterr().err
