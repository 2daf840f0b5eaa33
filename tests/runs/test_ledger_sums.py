"""A ledger whose bytes were changed is noticed, wherever the change is, by readers and by followers."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from farshore.core.errors import StorageError
from farshore.core.transfer import Transfer
from farshore.runs.ledger import Ledger
from farshore.runs.ledger_reader import read_ledger, segments
from farshore.runs.ledger_sums import sums_path
from farshore.runs.ledger_tail import LedgerTail


def _transfer(number: int) -> Transfer:
    return Transfer(f"n{number % 7}", "up", "echo", "raw", 0, number, 0, 10, 5, number, 0, float(number))


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    with Ledger(tmp_path, block_rows=20) as writer:
        for number in range(200):
            writer.record(_transfer(number))
    return tmp_path


@pytest.mark.parametrize("columns", [None, ["step"]])
def test_a_flipped_bit_anywhere_names_the_segment(ledger: Path, columns: list[str] | None) -> None:
    (path,) = segments(ledger)
    content = path.read_bytes()
    for place in random.Random(1).sample(range(len(content)), 100):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        with pytest.raises(StorageError, match=r"ledger-0000.arrows is damaged: the bytes of its block \d+"):
            read_ledger(ledger, columns)
        with pytest.raises(StorageError, match="is damaged"):
            list(LedgerTail(ledger, ["step"]).read_new())


def test_removed_bytes_in_the_middle_are_noticed(ledger: Path) -> None:
    (path,) = segments(ledger)
    content = path.read_bytes()
    path.write_bytes(content[:3000] + content[3064:])
    with pytest.raises(StorageError, match="is damaged"):
        read_ledger(ledger)


def test_a_segment_cut_at_a_block_is_read_with_a_warning(ledger: Path, caplog: pytest.LogCaptureFixture) -> None:
    (path,) = segments(ledger)
    end = int.from_bytes(sums_path(path).read_bytes()[24 * 3 :][:8], "little")
    path.write_bytes(path.read_bytes()[:end])
    assert read_ledger(ledger).num_rows == 80
    assert "ends before its block 4" in caplog.text
    assert sum(block.num_rows for block in LedgerTail(ledger, ["step"]).read_new()) == 80


def test_a_block_without_digest_of_a_killed_writer_is_read(ledger: Path) -> None:
    (path,) = segments(ledger)
    sums = sums_path(path).read_bytes()
    sums_path(path).write_bytes(sums[: 24 * 9 + 5])
    assert read_ledger(ledger).num_rows == 200
    with Ledger(ledger) as resumed:
        resumed.record(_transfer(200))
    assert sum(block.num_rows for block in LedgerTail(ledger, ["step"]).read_new()) == 201


def test_damaged_digests_are_noticed(ledger: Path) -> None:
    (path,) = segments(ledger)
    sums = bytearray(sums_path(path).read_bytes())
    sums[24 * 2 : 24 * 2 + 8] = bytes(8)
    sums_path(path).write_bytes(sums)
    with pytest.raises(StorageError, match=r"ledger-0000\.(sums|arrows) is damaged"):
        read_ledger(ledger)
