"""The communication table adds up what the ledger holds, and loses nothing."""

from __future__ import annotations

import itertools
from pathlib import Path

from farshore.cli.communication import COLUMNS, Communication
from farshore.core.transfer import Direction, Transfer
from farshore.runs.ledger import Ledger


def transfer(node: str, direction: Direction, kind: str, sizes: tuple[int, int, int]) -> Transfer:
    return Transfer(node, direction, kind, "raw", 0, 0, 0, *sizes, attempt=0, time=0.0)


def recorded(folder: Path, *transfers: Transfer) -> Communication:
    with Ledger(folder) as ledger:
        for row in transfers:
            ledger.record(row)
    return Communication.of_run(folder)


def test_lines_are_sums_per_node_direction_and_kind(tmp_path: Path) -> None:
    directions: tuple[Direction, Direction] = ("up", "down")
    every = itertools.product(("b", "a"), directions, ("gradient", "activation"), range(3))
    transfers = [transfer(n, d, k, (100 + i, 10 + i, 20 + i)) for n, d, k, i in every]
    found = recorded(tmp_path, *transfers)
    assert [(li.node, li.direction, li.kind) for li in found.lines[:4]] == [
        ("a", "up", "activation"),
        ("a", "up", "gradient"),
        ("a", "down", "activation"),
        ("a", "down", "gradient"),
    ]
    assert all((li.frames, li.dense, li.payload, li.frame) == (3, 303, 33, 63) for li in found.lines)
    total = found.total
    assert (total.frames, total.dense, total.payload, total.frame) == (24, 24 * 101, 24 * 11, 24 * 21)


def test_the_largest_kind_comes_first_within_a_direction(tmp_path: Path) -> None:
    found = recorded(tmp_path, transfer("a", "up", "ack", (0, 0, 64)), transfer("a", "up", "weights", (8, 8, 72)))
    assert [line.kind for line in found.lines] == ["weights", "ack"]


def test_rows_for_people_end_with_the_total_and_never_divide_by_zero(tmp_path: Path) -> None:
    own = [transfer("a", "up", kind, (0, 0, 64)) for kind in ("ack", "heartbeat", "bye")]
    rows = recorded(tmp_path, *own).rows()
    assert [row[:4] for row in rows] == [("a", "up", "(no tensors)", "3"), ("all", "–", "–", "3")]
    assert all(len(row) == len(COLUMNS) for row in rows)
    assert rows[-1][0] == "all"
    assert rows[0][-1] == "–"
    assert Communication(()).rows()[-1][3] == "0"
