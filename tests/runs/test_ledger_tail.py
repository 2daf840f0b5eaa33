"""A growing ledger is read incrementally, each block exactly once."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pytest

from farshore.core.errors import NotFoundError, StorageError
from farshore.core.transfer import Transfer
from farshore.runs.ledger import Ledger
from farshore.runs.ledger_reader import read_ledger
from farshore.runs.ledger_tail import LedgerTail

COLUMNS = ["node", "kind", "step", "frame_bytes", "time"]


def transfer(number: int) -> Transfer:
    # New names appear over time, so the dictionaries grow from block to block.
    node, kind = f"n{number % (number // 50 + 1)}", f"k{number % 7}"
    return Transfer(node, "up", kind, "raw", 0, number, 0, 10, 5, number, 0, float(number))


def rows(blocks: list[pa.RecordBatch]) -> list[dict[str, object]]:
    return [row for block in blocks for row in block.to_pylist()]


def test_every_row_is_read_once_and_in_order_for_any_timing_of_reads(tmp_path: Path) -> None:
    tail, found, chance = LedgerTail(tmp_path, COLUMNS), [], random.Random(3)
    for _ in range(2):  # the run's process was started twice
        with Ledger(tmp_path, block_rows=100) as ledger:
            for number in range(2000):
                ledger.record(transfer(number))
                if number % 333 == 0:
                    ledger.flush()
                    found += tail.read_new(chance.randint(1, 300))
    while new := list(tail.read_new(150)):
        assert tail.behind or sum(block.num_rows for block in new) < 150
        found += new
    assert not tail.behind
    assert rows(found) == read_ledger(tmp_path, COLUMNS).to_pylist()


def test_an_incomplete_block_is_read_once_it_is_complete(tmp_path: Path) -> None:
    with Ledger(tmp_path, block_rows=50) as ledger:
        for number in range(200):
            ledger.record(transfer(number))
    complete = (tmp_path / "ledger-0000.arrows").read_bytes()
    growing = tmp_path / "growing"
    growing.mkdir()
    tail, found = LedgerTail(growing, COLUMNS), []
    for end in range(0, len(complete) + 97, 97):
        (growing / "ledger-0000.arrows").write_bytes(complete[:end])
        found += tail.read_new()
    assert rows(found) == read_ledger(tmp_path, COLUMNS).to_pylist()


def test_an_incomplete_block_of_a_killed_writer_does_not_hide_the_next_segment(tmp_path: Path) -> None:
    for _ in range(2):
        with Ledger(tmp_path, block_rows=50) as ledger:
            for number in range(100):
                ledger.record(transfer(number))
    first = tmp_path / "ledger-0000.arrows"
    first.write_bytes(first.read_bytes()[:-700])
    assert len(rows(list(LedgerTail(tmp_path, COLUMNS).read_new()))) == len(read_ledger(tmp_path)) == 150


def test_missing_directories_and_other_files_raise_errors(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="does not exist"):
        list(LedgerTail(tmp_path / "none", COLUMNS).read_new())
    schema = pa.schema([("node", pa.string())])
    with pa.OSFile(str(tmp_path / "ledger-0000.arrows"), "w") as sink, pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(pa.record_batch([pa.array(["a"])], schema=schema))
    with pytest.raises(StorageError, match="is not a ledger"):
        list(LedgerTail(tmp_path, COLUMNS).read_new())
