"""An account equals the sums of its ledger's rows for any split into blocks, segments, windows and attempts."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from farshore.core.transfer import Transfer
from farshore.reports import account
from farshore.reports.account import CHANNEL, ONCE, REPEATED, Account
from farshore.runs.ledger import Ledger
from farshore.runs.ledger_reader import read_ledger

CHANNEL_KINDS = ("ack", "heartbeat")


def rows(seed: int, attempts: int, unit: str = "step") -> list[list[Transfer]]:
    """Rows of a run of two nodes, one list per attempt; each attempt continues from an earlier step."""
    rng = random.Random(seed)
    segments, start = [], 0
    for attempt in range(attempts):
        end = start + rng.randrange(3, 12)
        segment = []
        for number in range(start, end):
            position = (number, 0) if unit == "round" else (0, number)
            for node in ("a", "b"):
                for micro in range(2):
                    sizes = rng.randrange(100, 999), rng.randrange(10, 99), rng.randrange(100, 199)
                    segment.append(Transfer(node, "up", "activation", "int4", *position, micro, *sizes, attempt, 1.0))
                segment.append(Transfer(node, "down", "gradient", "raw", *position, 0, 40, 40, 60, attempt, 1.0))
                segment.append(Transfer(node, "up", rng.choice(CHANNEL_KINDS), "raw", 0, 0, 0, 0, 0, 32, attempt, 1.0))
        segments.append(segment)
        start = rng.randrange(max(1, end - 4), end)
    return segments


def write(folder: Path, segments: Iterable[Iterable[Transfer]]) -> None:
    for segment in segments:
        with Ledger(folder, block_rows=7) as ledger:
            for row in segment:
                ledger.record(row)


def expected_sums(segments: list[list[Transfer]]) -> Counter[tuple[str, str, str]]:
    """Frame bytes by node, kind and part, straight from the definition."""
    all_rows = [row for segment in segments for row in segment]

    def key(row: Transfer) -> tuple[Any, ...]:
        return row.node, row.direction, row.kind, row.encoding, row.round, row.step, row.micro

    newest: dict[tuple[Any, ...], int] = {}
    for row in all_rows:
        newest[key(row)] = max(row.attempt, newest.get(key(row), 0))
    sums: Counter[tuple[str, str, str]] = Counter()
    for row in all_rows:
        part = CHANNEL if row.kind in CHANNEL_KINDS else ONCE if row.attempt == newest[key(row)] else REPEATED
        sums[row.node, row.kind, part] += row.frame_bytes
    return sums


@pytest.mark.parametrize("unit", ["round", "step"])
@pytest.mark.parametrize(("seed", "attempts"), [(0, 1), (1, 2), (2, 3), (3, 4)])
@pytest.mark.parametrize("chunk", [5, 500_000])
def test_sums_equal_the_sums_of_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, attempts: int, unit: str, chunk: int
) -> None:
    monkeypatch.setattr(account, "_CHUNK", chunk)
    segments = rows(seed, attempts, unit)
    write(tmp_path, segments)
    for found in (Account.read(tmp_path), Account.from_table(read_ledger(tmp_path)), Account.read(tmp_path, windows=2)):
        sums = {(r["node"], r["kind"], r["part"]): r["frame_bytes"] for r in found.by("node", "kind", "part")}
        assert sums == expected_sums(segments)
        assert sum(r["frames"] for r in found.by("part")) == sum(map(len, segments))
        flow = {(r["kind"], r["part"]): r["payload_bytes"] for r in found.by("kind", "part")}
        nodes = found.by("node", "kind", "part")
        assert all(sum(r["payload_bytes"] for r in nodes if (r["kind"], r["part"]) == k) == v for k, v in flow.items())


def test_windows_merge_consecutive_steps_and_are_labeled(tmp_path: Path) -> None:
    transfers = [Transfer("a", "up", "update", "raw", 0, step, 0, 10, 10, 20, 0, 1.0) for step in range(3, 14)]
    write(tmp_path, [transfers])
    found = Account.read(tmp_path, windows=4)
    assert (found.periods.unit, found.periods.count) == ("step", 4)
    labeled = [(found.periods.label(r["window"]), r["frames"]) for r in found.by("window")]
    assert labeled == [("3-5", 3), ("6-8", 3), ("9-11", 3), ("12-13", 2)]


def test_windows_by_node_are_wider_with_many_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(account, "_MAX_NODE_WINDOWS", 12)
    monkeypatch.setattr(account, "_MIN_WINDOWS", 2)
    transfers = [
        Transfer(f"n{node}", "up", "update", "raw", number, 0, 0, 10, 10, 20, 0, 1.0)
        for number in range(1, 9)
        for node in range(3)
    ]
    write(tmp_path, [transfers])
    found = Account.read(tmp_path)
    assert len(found.by("window")) == 8
    assert [(found.node_periods.label(r["window"]), r["node"], r["frames"]) for r in found.by("window", "node")] == [
        (label, f"n{node}", 2) for label in ("1-2", "3-4", "5-6", "7-8") for node in range(3)
    ]


def test_an_empty_ledger_gives_no_rows(tmp_path: Path) -> None:
    with Ledger(tmp_path):
        pass
    found = Account.read(tmp_path)
    assert found.by("node", "kind") == []
    assert found.periods.count == 1


def test_cumulative_payload_is_exact_for_rounds_far_apart(tmp_path: Path) -> None:
    far = 1 << 40
    with Ledger(tmp_path) as ledger:
        for number, attempt in ((1, 0), (7, 0), (7, 1), (far, 1)):
            ledger.record(Transfer("a", "up", "update", "raw", number, 0, 0, 40, 10, 50, attempt, 1.0))
        ledger.record(Transfer("a", "up", "ack", "raw", 7, 0, 0, 0, 3, 50, 0, 1.0))
    found = Account.read(tmp_path, windows=3)
    assert found.payload_until([0, 1, 6, 7, far - 1, far, far + 1]) == [0, 10, 10, 20, 20, 30, 30]
