"""The communication report sums the ledger, and compression names its baseline."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from farshore.core.errors import NotFoundError
from farshore.core.transfer import Direction, Transfer
from farshore.reports.account import Account
from farshore.reports.communication import CommunicationReport, Volume, communication, compression, compressions
from farshore.reports.tables import communication_table, compression_table
from farshore.runs.ledger import Ledger
from farshore.runs.ledger_reader import read_ledger

Row = tuple[str, Direction, str, int, int, int, int, int]  # node, direction, kind, step, attempt, dense, payload, frame


def report(folder: Path, rows: Sequence[Row], **sockets: int) -> CommunicationReport:
    with Ledger(folder) as ledger:
        for node, direction, kind, step, attempt, dense, payload, frame in rows:
            encoding = "int4" if kind == "activation" else "raw"
            ledger.record(Transfer(node, direction, kind, encoding, 0, step, 0, dense, payload, frame, attempt, 1.0))
    return communication(Account.from_table(read_ledger(folder)), sockets)


PLAIN: list[Row] = [
    ("b", "down", "gradient", 0, 0, 4000, 400, 440),
    ("b", "up", "activation", 0, 0, 8000, 500, 540),
    ("a", "up", "activation", 0, 0, 8000, 500, 540),
    ("a", "up", "activation", 1, 0, 8000, 500, 540),
    ("a", "up", "ack", 0, 0, 0, 0, 32),
    ("a", "up", "retransmission", 0, 0, 0, 0, 540),
]


def test_every_sum_is_the_sum_of_its_rows(tmp_path: Path) -> None:
    found = report(tmp_path, PLAIN)
    assert found.total == Volume(6, 28000, 1900, 2632)
    assert found.once == Volume(4, 28000, 1900, 2060)
    assert found.channel == Volume(2, 0, 0, 572)
    assert found.repeated == Volume()
    assert [(x.node, x.volume.frames) for x in found.by_node] == [("a", 4), ("b", 2)]
    assert [(x.direction, x.volume.payload_bytes) for x in found.by_direction] == [("up", 1500), ("down", 400)]
    assert [(x.encoding, x.volume.dense_bytes) for x in found.by_encoding] == [("int4", 24000), ("raw", 4000)]
    assert [(x.node, x.direction, x.kind) for x in found.lines] == [
        ("a", "up", "ack"),
        ("a", "up", "activation"),
        ("a", "up", "retransmission"),
        ("b", "up", "activation"),
        ("b", "down", "gradient"),
    ]
    assert found.lines[1].volume == Volume(2, 16000, 1000, 1080)


def test_messages_resent_after_a_restart_count_once(tmp_path: Path) -> None:
    """Steps 0-2, then a restart from step 1: steps 1 and 2 are sent again, step 3 is new in attempt 1."""
    sizes = (8000, 500, 540)
    rows: list[Row] = [("a", "up", "activation", s, 0, *sizes) for s in (0, 1, 2)]
    rows += [("a", "up", "activation", s, 1, *sizes) for s in (1, 2, 3)]
    rows += [("a", "up", "heartbeat", 0, 1, 0, 0, 32)]
    found = report(tmp_path / "restarted", rows)
    uninterrupted = report(tmp_path / "uninterrupted", [("a", "up", "activation", s, 0, *sizes) for s in range(4)])
    assert found.once == uninterrupted.once == Volume(4, 32000, 2000, 2160)
    assert found.repeated == Volume(2, 16000, 1000, 1080)
    assert found.total == found.once + found.repeated + found.channel
    assert compression(found, "vanilla", 32000).ratio == compression(uninterrupted, "vanilla", 32000).ratio == 16.0


def test_messages_of_the_same_step_and_attempt_all_count(tmp_path: Path) -> None:
    rows: list[Row] = [("a", "up", "control", 0, attempt, 10, 10, 20) for attempt in (0, 0, 1, 1, 1)]
    assert report(tmp_path, rows).once == Volume(3, 30, 30, 60)


def test_compression_names_its_baseline_and_counts_side_data(tmp_path: Path) -> None:
    found = report(tmp_path, PLAIN)
    first, second = compressions(found, {"vanilla split learning": 190_000, "shipping the weights": 19_000})
    assert (first.baseline, first.payload_bytes, first.ratio) == ("vanilla split learning", 1900, 100.0)
    assert (second.baseline, second.ratio) == ("shipping the weights", 10.0)
    of_kind = compression(found, "vanilla split learning", 30_000, kinds=["activation"])
    assert (of_kind.kinds, of_kind.payload_bytes, of_kind.ratio) == (("activation",), 1500, 20.0)
    with pytest.raises(NotFoundError, match="no message of kind 'weights'"):
        compression(found, "vanilla split learning", 1, kinds=["weights"])


def test_the_report_is_json_serializable(tmp_path: Path) -> None:
    found = report(tmp_path, PLAIN, up=3000, down=500)
    decoded = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert decoded["total"]["payload_bytes"] == 1900
    assert decoded["lines"][0] == {
        "node": "a",
        "direction": "up",
        "kind": "ack",
        "frames": 1,
        "dense_bytes": 0,
        "payload_bytes": 0,
        "frame_bytes": 32,
        "ratio": None,
        "overhead": 1.0,
    }
    assert decoded["socket_bytes"] == {"up": 3000, "down": 500}


def test_an_empty_ledger_gives_an_empty_report(tmp_path: Path) -> None:
    found = report(tmp_path, [])
    assert found.total == Volume()
    assert found.total.ratio is None
    assert found.lines == ()
    assert compression(found, "vanilla", 100).ratio is None


def test_the_table_shows_every_line_and_the_socket_bytes(tmp_path: Path) -> None:
    rows = [*PLAIN, ("a", "up", "activation", 1, 1, 8000, 500, 540)]
    text = rendered(communication_table(report(tmp_path, rows, up=3_210_000, down=500)))
    line = next(line for line in text.splitlines() if line.startswith("b") and "gradient" in line)
    assert line.split() == [
        "b",
        "↓",
        "down",
        "gradient",
        "1",
        "4.00",
        "kB",
        "400",
        "B",
        "440",
        "B",
        "10.0x",
        "9.1",
        "%",
    ]
    assert "resent after a restart" in text
    assert "3.21 MB up, 500 B down" in text
    assert "were not measured" in rendered(communication_table(report(tmp_path / "other", PLAIN)))


def test_the_compression_table_names_the_baseline(tmp_path: Path) -> None:
    text = rendered(compression_table(compressions(report(tmp_path, PLAIN), {"vanilla split learning": 1_900_000})))
    assert "vanilla split learning" in text
    assert "1,000x" in text
    assert "all messages of the method" in text


def rendered(table: object) -> str:
    console = Console(width=160, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return capture.get()
