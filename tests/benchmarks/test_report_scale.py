"""The report benchmark writes a valid ledger and judges its gates at full scale only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from farshore.runs.ledger_reader import schema

ROWS = 12_000


@pytest.fixture
def bench(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("report_scale")


def test_the_report_of_the_written_ledger_is_correct(bench: ModuleType, tmp_path: Path) -> None:
    run, per_row = bench.write_run(tmp_path / "large", ROWS)
    table = run.read_ledger()
    assert table.schema == schema()
    assert table.num_rows == ROWS
    assert per_row > 0
    found = bench.report(run)
    bench.check(found.output, ROWS)
    assert found.megabytes > 10
    assert found.cpu > 0
    with pytest.raises(AssertionError):
        bench.check(found.output, ROWS + 2)


def test_gates_are_judged_at_full_scale_only(bench: ModuleType) -> None:
    good: dict[str, Any] = {"report_cpu_seconds": 4.9, "report_megabytes": 499, "block_microseconds_per_row": 0.05}
    good |= {"percent_of_round": 0.5, "percent_of_step": None}
    assert [g.holds for g in bench.gates(good, judged=True)] == [True, True, True, True, None]
    assert {g.holds for g in bench.gates(good, judged=False)} == {None}
    slow = {**good, "report_cpu_seconds": 5.1, "percent_of_step": 1.5}
    assert [g.holds for g in bench.gates(slow, judged=True)] == [False, True, True, True, False]
