"""An incrementally updated account equals the account of the whole ledger."""

from __future__ import annotations

from pathlib import Path

import pytest

from farshore.core.transfer import Transfer
from farshore.reports.account import Account
from farshore.reports.curves import read_curve
from farshore.reports.growing_account import GrowingAccount

from .runs import federated

GROUPS = (("node", "direction", "kind", "part"), ("encoding", "part"), ("direction", "kind", "encoding"))


def checked_account(growing: GrowingAccount, path: Path) -> Account:
    found, whole = growing.account(), Account.read(path)
    for group in GROUPS:
        assert found.by(*group) == whole.by(*group), group
    return found


def step(number: int, attempt: int = 0, node: int = 0) -> Transfer:
    return Transfer(f"n{node}", "up", "code", "int8", 0, number, 0, 400, 100 + number % 3, 150, attempt, 1.0)


def test_it_equals_the_account_of_the_whole_ledger_after_every_refresh(tmp_path: Path) -> None:
    run = federated(tmp_path / "r", rounds=0)
    growing = GrowingAccount(run.path, windows=8)
    with run.open_ledger() as ledger:
        for number in range(1, 41):
            ledger.record(Transfer("n0", "down", "hello", "raw", 0, 0, 0, 0, 0, 30, 0, 1.0))
            ledger.record(step(number, node=number % 5))
            ledger.flush()
            assert growing.refresh()
            found = checked_account(growing, run.path)
            assert found.periods.count <= 8
    assert not growing.refresh()


def test_messages_resent_after_a_restart_count_once(tmp_path: Path) -> None:
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
        found = checked_account(growing, run.path)
        assert found.by("part", parts=["once"])[0]["frames"] == last - 1
        sizes = [100 + number % 3 for number in range(1, last)]
        assert found.payload_until(range(1, last)) == [sum(sizes[:number]) for number in range(1, last)]


def test_a_curve_with_a_given_account_does_not_read_the_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = federated(tmp_path / "r", rounds=30)
    growing = GrowingAccount(run.path, windows=4)
    growing.refresh()
    whole = read_curve(run, "acc")
    monkeypatch.setattr(Account, "read", None)
    assert read_curve(run, "acc", growing.account()) == whole


def test_a_refresh_reads_only_new_rows(tmp_path: Path) -> None:
    run = federated(tmp_path / "r", rounds=2)
    growing = GrowingAccount(run.path)
    growing.refresh()
    (segment,) = run.path.glob("ledger-*.arrows")
    with segment.open("r+b") as file:  # corrupt what has been read: it must not be read again
        file.write(bytes(segment.stat().st_size))
    with run.open_ledger() as ledger:
        ledger.record(Transfer("n0", "up", "update", "int8", 3, 0, 0, 4000, 1000, 1100, 0, 1.0))
    assert growing.refresh()
    assert [row["payload_bytes"] for row in growing.account().by("kind")] == [6 * 4000, 6 * 1000 + 1000]
