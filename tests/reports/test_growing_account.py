"""An account that grows with its ledger is the account of the whole ledger."""

from __future__ import annotations

from pathlib import Path

import pytest

from farshore.core.transfer import Transfer
from farshore.reports.account import Account
from farshore.reports.curves import read_curve
from farshore.reports.growing_account import GrowingAccount

from .runs import federated

GROUPS = (("node", "direction", "kind", "part"), ("encoding", "part"), ("direction", "kind", "encoding"))


def same(growing: GrowingAccount, path: Path) -> Account:
    found, whole = growing.account(), Account.read(path)
    for group in GROUPS:
        assert found.by(*group) == whole.by(*group), group
    return found


def step(number: int, attempt: int = 0, node: int = 0) -> Transfer:
    return Transfer(f"n{node}", "up", "code", "int8", 0, number, 0, 400, 100 + number % 3, 150, attempt, 1.0)


def test_it_equals_the_whole_after_every_look(tmp_path: Path) -> None:
    run = federated(tmp_path / "r", rounds=0)
    growing = GrowingAccount(run.path, windows=8)
    with run.open_ledger() as ledger:
        for number in range(1, 41):
            ledger.record(Transfer("n0", "down", "hello", "raw", 0, 0, 0, 0, 0, 30, 0, 1.0))
            ledger.record(step(number, node=number % 5))
            ledger.flush()
            assert growing.refresh()
            found = same(growing, run.path)
            assert found.periods.count <= 8
    assert not growing.refresh()


def test_what_a_restart_sent_again_counts_once(tmp_path: Path) -> None:
    run = federated(tmp_path / "r", rounds=0)
    growing = GrowingAccount(run.path)
    for attempt, (first, last) in enumerate([(1, 30), (21, 50), (11, 60)]):
        with run.open_ledger() as ledger:
            for number in range(first, last):
                ledger.record(step(number, attempt))
                if number % 7 == 0:
                    ledger.flush()
                    growing.refresh()
        growing.refresh()
        found = same(growing, run.path)
        assert found.by("part", parts=["once"])[0]["frames"] == last - 1
        paid = [100 + number % 3 for number in range(1, last)]
        assert found.payload_until(range(1, last)) == [sum(paid[:number]) for number in range(1, last)]


def test_a_curve_over_bytes_needs_no_second_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = federated(tmp_path / "r", rounds=30)
    growing = GrowingAccount(run.path, windows=4)
    growing.refresh()
    whole = read_curve(run, "acc")
    monkeypatch.setattr(Account, "read", None)
    assert read_curve(run, "acc", growing.account()) == whole


def test_a_look_reads_only_what_is_new(tmp_path: Path) -> None:
    run = federated(tmp_path / "r", rounds=2)
    growing = GrowingAccount(run.path)
    growing.refresh()
    (segment,) = run.path.glob("ledger-*.arrows")
    with segment.open("r+b") as file:  # what was read already may rot: nobody looks at it again
        file.write(bytes(segment.stat().st_size))
    with run.open_ledger() as ledger:
        ledger.record(Transfer("n0", "up", "update", "int8", 3, 0, 0, 4000, 1000, 1100, 0, 1.0))
    assert growing.refresh()
    assert [row["payload_bytes"] for row in growing.account().by("kind")] == [6 * 4000, 6 * 1000 + 1000]
