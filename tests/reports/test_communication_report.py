"""Communication reports add up, and say what they compare with."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from farshore.core.transfer import Transfer
from farshore.reports.communication import CommunicationReport, Row
from farshore.reports.tables import communication, compression_lines, ratio, size
from farshore.runs.ledger import Ledger, read_ledger

BASELINES = {"vanilla split learning": 96_000, "shipping the weights": 1_500_000}


def transfers() -> list[Transfer]:
    rows = []
    for node, scale in (("edge-1", 1), ("edge-2", 2)):
        for step in range(10):
            sizes = (9600 * scale, 100 * scale, 130 * scale)
            rows.append(Transfer(node, "up", "activation", "ragged|int4", 0, step, 0, *sizes, 0, float(step)))
            rows.append(Transfer(node, "down", "gradient", "int8", 0, step, 0, 4800 * scale, 90, 120, 0, float(step)))
        rows.append(Transfer(node, "up", "activation", "raw", 0, 10, 0, 50, 50, 80, 1, 11.0))
        rows.append(Transfer(node, "down", "ack", "raw", 0, 0, 0, 0, 0, 32, 0, 12.0))
    return rows


@pytest.fixture
def report(tmp_path: Path) -> CommunicationReport:
    with Ledger(tmp_path, block_rows=7) as ledger:
        for row in transfers():
            ledger.record(row)
    return CommunicationReport.of(read_ledger(tmp_path), BASELINES, {"up": 6000, "down": 3000})


def test_the_total_is_every_transfer_once(report: CommunicationReport) -> None:
    rows = transfers()
    assert report.total == Row(
        frames=len(rows),
        dense_bytes=sum(r.dense_bytes for r in rows),
        payload_bytes=sum(r.payload_bytes for r in rows),
        frame_bytes=sum(r.frame_bytes for r in rows),
    )


@pytest.mark.parametrize("columns", [(), ("node",), ("direction", "kind"), ("node", "direction", "kind", "encoding")])
def test_sums_by_any_columns_agree_with_the_transfers(report: CommunicationReport, columns: tuple) -> None:
    found = report.by(*columns)
    keys = {tuple(getattr(t, c) for c in columns) for t in transfers()}
    assert {tuple(getattr(r, c) for c in columns) for r in found} == keys
    for row in found:
        mine = [t for t in transfers() if all(getattr(t, c) == getattr(row, c) for c in columns)]
        assert row.frames == len(mine)
        for name in ("dense_bytes", "payload_bytes", "frame_bytes"):
            assert getattr(row, name) == sum(getattr(t, name) for t in mine)
        assert all(not getattr(row, c) for c in ("node", "direction", "kind", "encoding") if c not in columns)


def test_rows_go_by_node_uplink_first_largest_first(report: CommunicationReport) -> None:
    order = [(r.node, r.direction, r.kind, r.encoding) for r in report.rows]
    assert order == [
        (node, *rest)
        for node in ("edge-1", "edge-2")
        for rest in (
            ("up", "activation", "ragged|int4"),
            ("up", "activation", "raw"),
            ("down", "gradient", "int8"),
            ("down", "ack", "raw"),
        )
    ]


def test_compression_is_the_baseline_over_the_whole_payload(report: CommunicationReport) -> None:
    payload = 10 * 100 + 10 * 200 + 2 * 10 * 90 + 2 * 50
    assert report.compression == {
        "vanilla split learning": 96_000 / payload,
        "shipping the weights": 1_500_000 / payload,
    }
    assert report.rows[0].ratio == 96
    assert report.by("kind")[0].kind == "activation"


def test_a_run_that_sent_nothing_has_no_ratios(tmp_path: Path) -> None:
    report = CommunicationReport.of(read_ledger(tmp_path), BASELINES)
    assert report.rows == ()
    assert report.total == Row()
    assert report.total.ratio is None
    assert set(report.compression.values()) == {None}
    assert "0" in _shown(report)


def test_a_report_is_json(report: CommunicationReport) -> None:
    value = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert value == report.as_dict()
    assert value["total"] == {
        "frames": 44,
        "dense_bytes": report.total.dense_bytes,
        "payload_bytes": 4900,
        "frame_bytes": report.total.frame_bytes,
        "ratio": report.total.dense_bytes / 4900,
    }
    assert sum(row["payload_bytes"] for row in value["rows"]) == 4900
    assert [row["direction"] for row in value["by_direction"]] == ["up", "down"]
    assert value["socket_bytes"] == {"up": 6000, "down": 3000}
    assert value["baselines"] == BASELINES


def test_the_table_shows_rows_totals_and_comparisons(report: CommunicationReport) -> None:
    text = _shown(report)
    lines = [" ".join(line.replace("│", " ").split()) for line in text.splitlines()]
    assert "edge-1 uplink activation 11 96.0 kB 1.05 kB 1.38 kB 91.5×" in lines
    assert "edge-2 downlink ack 1 0 B 0 B 32 B –" in lines
    assert any(line.startswith("all uplink all 22 ") for line in lines)
    assert any(line.startswith("all both all 44 ") for line in lines)
    assert "compression against vanilla split learning: 19.6× (96.0 kB / 4.90 kB payload)" in lines
    frames = report.total.frame_bytes
    assert (
        f"sockets (HTTP/2, TLS and TCP included): uplink 6.00 kB, downlink 3.00 kB, together 9.00 kB, "
        f"{100 * (9000 / frames - 1):+.1f} % over the frames" in lines
    )


def test_sockets_that_nobody_measured_are_not_shown(report: CommunicationReport) -> None:
    lines = compression_lines(CommunicationReport(report.rows, BASELINES))
    assert len(lines) == 2
    assert not any("socket" in line for line in lines)
    assert CommunicationReport(report.rows).as_dict()["socket_bytes"] is None


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (1234, "1.23 kB"),
        (9_994, "9.99 kB"),
        (9_996, "10.0 kB"),
        (99_940, "99.9 kB"),
        (99_960, "100 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (45_600_000, "45.6 MB"),
        (7.89e11, "789 GB"),
        (1e18, "1000 PB"),
    ],
)
def test_sizes_have_three_digits_and_steps_of_a_thousand(count: float, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.5, "0.50×"), (9.996, "10.0×"), (96.04, "96.0×"), (999.96, "1,000×"), (1536, "1,536×")],
)
def test_ratios_are_short(value: float | None, text: str) -> None:
    assert ratio(value) == text


def _shown(report: CommunicationReport) -> str:
    console = Console(file=io.StringIO(), width=140)
    console.print(communication(report))
    return console.file.getvalue()  # type: ignore[attr-defined]
