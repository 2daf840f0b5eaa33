"""The run directory, its JSON lines, and run ids."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from farshore.core.errors import NotFoundError, StorageError
from farshore.core.transfer import Transfer
from farshore.core.version import PROTOCOL
from farshore.runs import jsonl
from farshore.runs.directory import RunDirectory
from farshore.runs.ids import new_run_id

INFO = {"id": "r1", "workload": "ping", "config": {"rank": 8}, "seed": 2**63 + 1, "nodes": ["a", "b"]}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "runs" / "r1", INFO)


def test_opening_a_run_returns_its_info_and_updates(run: RunDirectory) -> None:
    again = RunDirectory.open(run.path)
    assert again.info.items() >= INFO.items()
    assert again.info["versions"]["protocol"] == PROTOCOL
    assert abs(again.info["created"] - time.time()) < 60
    again.update(nodes=["a", "c"])
    assert RunDirectory.open(run.path).info["nodes"] == ["a", "c"]
    assert RunDirectory.open(run.path).info["seed"] == 2**63 + 1


def test_files_are_created_as_documented_and_only_when_written(run: RunDirectory) -> None:
    assert [p.name for p in run.path.iterdir()] == ["run.json"]
    with run.open_ledger() as ledger:
        ledger.record(Transfer("a", "up", "activation", "raw", 0, 0, 0, 1, 1, 1, 0, 0.0))
    run.checkpoints.save(120, {"w": np.zeros(2)}, {})
    for writer in (run.open_metrics(), run.open_events()):
        writer.close()
    run.write_result({"accuracy": 0.5, "loss": math.nan})
    run.log.write_text("a line\n")
    found = {str(p.relative_to(run.path)) for p in run.path.rglob("*") if p.is_file()}
    assert found == {
        "run.json",
        "result.json",
        "metrics.jsonl",
        "events.jsonl",
        "ledger-0000.arrows",
        "ledger-0000.sums",
        "checkpoints/step-000000000120.safetensors",
        "log.txt",
    }
    again = RunDirectory.open(run.path)
    assert again.result == {"accuracy": 0.5, "loss": None}
    assert again.read_ledger().num_rows == 1
    assert again.checkpoints.steps() == [120]


def test_the_result_is_none_until_it_is_written(run: RunDirectory) -> None:
    assert run.result is None
    with pytest.raises(StorageError, match=r"result\.json"):
        run.write_result({"x": object()})
    assert run.result is None


def test_errors_distinguish_existing_missing_and_damaged_runs(run: RunDirectory, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="already contains a run"):
        RunDirectory.create(run.path, INFO)
    with pytest.raises(NotFoundError, match=r"no run\.json"):
        RunDirectory.open(tmp_path)
    with pytest.raises(StorageError, match="missing seed, nodes"):
        RunDirectory.create(tmp_path / "r2", {"id": "r2", "workload": "ping", "config": {}})
    assert not (tmp_path / "r2").exists()
    for broken in ("{", "[]", '{"id": "r1"}'):
        (run.path / "run.json").write_text(broken)
        with pytest.raises(StorageError, match="damaged"):
            RunDirectory.open(run.path)


def test_non_finite_metrics_are_written_as_null(run: RunDirectory) -> None:
    metrics = run.open_metrics()
    metrics.write(1, {"loss": math.nan, "rate": -math.inf, "accuracy": np.float32(0.5)})
    metrics.close()
    (line,) = run.read_metrics()
    assert line.pop("time") > 1e9
    assert line == {"step": 1, "loss": None, "rate": None, "accuracy": 0.5}
    assert "NaN" not in (run.path / "metrics.jsonl").read_text()


def test_events_keep_their_fields(run: RunDirectory) -> None:
    events = run.open_events()
    events.write("epoch", epoch=1, lost=["é"], nested={"x": math.inf})
    events.write("end", kind="overwritten")
    events.close()
    first, second = run.read_events()
    assert (first["kind"], first["epoch"], first["lost"], first["nested"]) == ("epoch", 1, ["é"], {"x": None})
    assert second["kind"] == "end"
    assert second["time"] >= first["time"] > 1e9


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_truncated_line_does_not_affect_other_lines(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "x.jsonl"
    with jsonl.JsonLines(path) as lines:
        for i in range(3):
            lines.append({"i": i, "é": "ü"})
    os.truncate(path, path.stat().st_size - cut)
    # A line that lacks only its newline is still complete.
    kept = [0, 1, 2] if cut == 1 else [0, 1]
    assert [line["i"] for line in jsonl.read(path)] == kept
    with jsonl.JsonLines(path) as lines:
        lines.append({"i": 3})
    assert [line["i"] for line in jsonl.read(path)] == [*kept, 3]


def test_lines_of_concurrent_threads_do_not_interleave(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    with jsonl.JsonLines(path) as lines:
        threads = [
            threading.Thread(target=lambda n=n: [lines.append({"n": n, "i": i}) for i in range(500)]) for n in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    read = [json.loads(line) for line in path.read_text().splitlines()]
    for n in range(4):
        assert [line["i"] for line in read if line["n"] == n] == list(range(500))


def test_a_full_disk_raises_an_error_and_loses_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.jsonl"
    write = os.write
    with jsonl.JsonLines(path) as lines:
        lines.append({"i": 0})

        def fail(file: int, data: bytes) -> int:
            if len(data) > 4:
                return write(file, data[:4])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", fail)
            with pytest.raises(StorageError, match="No space left"):
                lines.append({"i": 1, "long": "text"})
        lines.append({"i": 2})
    assert [line["i"] for line in jsonl.read(path)] == [0, 2]
    with pytest.raises(StorageError, match="closed"):
        lines.append({"i": 3})


def test_a_missing_file_has_no_lines_and_an_unreadable_one_raises_an_error(tmp_path: Path) -> None:
    assert list(jsonl.read(tmp_path / "nothing.jsonl")) == []
    with pytest.raises(StorageError, match="cannot read"):
        list(jsonl.read(tmp_path))


def test_filtering_removes_lines_and_keeps_the_rest_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    jsonl.filter_file(path, lambda line: True)
    assert not path.exists()
    with jsonl.JsonLines(path) as lines:
        for number in (1, 2, 3):
            lines.append({"round": number, "acc": [0.5, None, "ü"]})
    before = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(before) + b'{"round": 4, "a')
    jsonl.filter_file(path, lambda line: line["round"] <= 2)
    assert path.read_bytes() == b"".join(before[:2])
    assert [entry.name for entry in tmp_path.iterdir()] == ["lines.jsonl"]


def test_run_ids_are_unique_and_sort_in_the_order_of_creation() -> None:
    ids = [new_run_id() for _ in range(3000)]
    assert ids == sorted(set(ids))
    # Ids keep increasing when the clock is set back.
    assert new_run_id(lambda: 1.0) > ids[-1]


def test_run_ids_contain_the_time_of_creation() -> None:
    script = "from farshore.runs.ids import new_run_id; print(new_run_id(lambda: 1776004212.0575))"
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("260412-143012-057")
    assert len(done.stdout.strip()) == len("260412-143012-057k3")


def test_importing_the_package_does_not_import_sqlalchemy_pyarrow_torch_or_pandas() -> None:
    script = """
import sys, farshore.runs
import farshore.runs.checkpoints, farshore.runs.directory, farshore.runs.ledger, farshore.runs.store
import farshore.reports.communication, farshore.reports.tables
print(*[name for name in ("pyarrow", "sqlalchemy", "torch", "pandas") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_failures_are_stored_with_tracebacks_and_bounded_in_size(tmp_path: Path) -> None:
    info = {"id": "r", "workload": "x", "config": {}, "seed": 0, "nodes": []}
    run = RunDirectory.create(tmp_path / "r", info)
    assert list(run.read_failures()) == []
    run.add_failure("a", 2, "it broke", "Traceback\n  line")
    (failure,) = run.read_failures()
    assert {name: failure[name] for name in ("origin", "epoch", "error", "traceback")} == {
        "origin": "a",
        "epoch": 2,
        "error": "it broke",
        "traceback": "Traceback\n  line",
    }
    for _ in range(200):
        run.add_failure("a", 3, "e" * 10_000, "t" * 100_000 + "end")
    assert (run.path / "failures.jsonl").stat().st_size < 5 << 20
    assert [f["traceback"][-3:] for f in run.read_failures()][1:3] == ["end", "end"]


def test_a_tail_reads_each_complete_line_once(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    tail = jsonl.Tail(path)
    assert tail.read_new() == []
    path.write_bytes(b'{"a": 1}\nbroken\n[1]\n{"a": 2}\n{"a"')
    assert tail.read_new() == [{"a": 1}, {"a": 2}]
    assert tail.read_new() == []
    with path.open("ab") as file:
        file.write(b': 3}\n{"a": 4}\n')
    assert tail.read_new(limit=12) == [{"a": 3}]
    assert tail.read_new() == [{"a": 4}]
