"""A run's report matches its ledger and its metrics, in any state of the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pyarrow import csv, parquet
from rich.console import Console

from farshore.core.errors import NotFoundError
from farshore.core.profiles import LinkProfile
from farshore.core.transfer import Transfer
from farshore.reports import account
from farshore.reports.account import Account
from farshore.reports.links import LINKS, NamedLink, estimate_links
from farshore.reports.report_tables import report_tables
from farshore.reports.run_report import Target, read_report
from farshore.reports.sums import write_csv, write_parquet
from farshore.runs.directory import RunDirectory
from farshore.runs.ledger import Ledger
from farshore.runs.locate import locate

from .runs import federated


def test_the_report_of_a_finished_run_has_rounds_targets_and_compression(tmp_path: Path) -> None:
    run = federated(tmp_path / "r")
    run.write_result({"baselines": {"nothing encoded": 96_000}})
    found = read_report(run, [0.4, 0.9])
    assert (found.state, found.unit, found.score) == ("finished", "round", "acc")
    assert [w.label for w in found.windows] == ["1", "2", "3", "4"]
    assert found.windows[0].payload_by_kind == {"model": 12_000, "update": 3000}
    assert [(t.score, t.round, t.payload_bytes) for t in found.targets] == [
        (0.25, 3, 45_000),
        (0.4, 4, 60_000),
        (0.9, None, None),
    ]
    assert found.compressions[0].ratio == 96_000 / 60_000
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["windows"][3]["up"]["payload_bytes"] == 3000


def test_unfinished_and_failed_runs_are_reported_up_to_their_last_round(tmp_path: Path) -> None:
    run = federated(tmp_path / "r")
    assert read_report(run).state == "unfinished"
    events = run.open_events()
    events.write("running", epoch=0, reason="", nodes=["n0"])
    events.write("failed", epoch=0, reason="node n0: no space left", nodes=["n0"])
    events.close()
    found = read_report(run)
    assert (found.state, found.reason) == ("failed", "node n0: no space left")
    bare = RunDirectory.create(
        tmp_path / "bare", {"id": "bare", "workload": "ping", "config": {}, "seed": 0, "nodes": []}
    )
    assert (read_report(bare).windows, read_report(bare).curve) == ((), None)
    for report in (found, read_report(bare)):
        for table in report_tables(report):
            Console(width=200).print(table)


def test_the_tables_show_the_metrics(tmp_path: Path) -> None:
    run = federated(tmp_path / "r", rounds=50, nodes=14)
    console = Console(width=200, color_system=None)
    with console.capture() as capture:
        for table in report_tables(read_report(run)):
            console.print(table)
    lines = capture.get().splitlines()
    assert next(line for line in lines if line.startswith("update")).split()[:7] == [
        *("update", "↑", "up", "int8", "700", "2.80", "MB"),
    ]
    assert next(line for line in lines if line.startswith("1-3")).split()[1:5] == ["168", "kB", "42.0", "kB"]
    assert any(line.startswith("4 others") for line in lines)
    assert any(line.startswith("0.25") and line.endswith("210 kB") for line in lines)
    assert all(any(line.startswith(link.name) for line in lines) for link in LINKS)


def test_link_time_is_the_sum_over_rounds_of_the_busiest_node(tmp_path: Path) -> None:
    link = NamedLink(
        "slow", LinkProfile(up_mbps=8, down_mbps=80, latency_ms=50, up_joule_per_mb=2), "test", 0.5, "test"
    )
    with Ledger(tmp_path) as ledger:
        for number, node, up in ((1, "a", 1_000_000), (1, "b", 3_000_000), (2, "a", 2_000_000)):
            ledger.record(Transfer(node, "up", "update", "raw", number, 0, 0, up, up, up, 0, 1.0))
            ledger.record(Transfer(node, "down", "model", "raw", number, 0, 0, 0, 0, 10_000_000, 0, 1.0))
    (found,) = estimate_links(Account.read(tmp_path), (link,))
    assert found.seconds == pytest.approx((3 + 1) + (2 + 1) + 2 * 0.1)
    assert found.joule == pytest.approx(6 * 2 + 0.5 * (1 + 3 + 2 + 3 * 1))
    assert not found.at_least
    (coarse,) = estimate_links(Account.read(tmp_path, windows=1), (link,))
    assert coarse.at_least


def test_exported_sums_include_all_bytes(tmp_path: Path) -> None:
    account = read_report(federated(tmp_path / "r")).account
    write_csv(account, tmp_path / "sums.csv")
    write_parquet(account, tmp_path / "sums.parquet")
    for table in (csv.read_csv(tmp_path / "sums.csv"), parquet.read_table(tmp_path / "sums.parquet")):
        assert table.column_names[:7] == ["node", "direction", "kind", "encoding", "first_round", "last_round", "part"]
        assert sum(table["frame_bytes"].to_pylist()) == 12 * (4100 + 1100)
        assert set(table["first_round"].to_pylist()) == {1, 2, 3, 4}


def test_a_run_is_found_only_by_path_or_id(tmp_path: Path) -> None:
    federated(tmp_path / "home" / "runs" / "one")
    folders = [tmp_path / "home" / "runs", tmp_path / "imported"]
    assert locate("one", folders).info["id"] == "one"
    assert locate(str(tmp_path / "home" / "runs" / "one"), []).info["id"] == "one"
    for wrong in ("two", "../runs/one", "", ".."):
        with pytest.raises(NotFoundError):
            locate(wrong, folders)


def test_the_score_curve_of_a_long_run_is_exact_and_needs_no_extra_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows merge three of 450 rounds, yet curve and targets are exact to the round."""
    run = federated(tmp_path / "r", rounds=450, nodes=2, config={"targets": [20.0]})
    read = account.read_blocks
    passes: list[list[str]] = []

    def recording_read(directory: Path, columns: list[str]) -> Any:
        passes.append(list(columns))
        return read(directory, columns)

    monkeypatch.setattr(account, "read_blocks", recording_read)
    found = read_report(run)
    assert len(passes) == 2, "one pass for the rounds, one for the sums"
    assert found.account.periods.width == 3
    assert found.curve is not None
    assert found.curve.payload == tuple(number * 2 * 5000 for number in range(1, 451))
    assert found.targets[0] == Target(20.0, 200, 200 * 2 * 5000)
